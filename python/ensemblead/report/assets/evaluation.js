
// What is particular to the page of an evaluation: labels are known, so verdicts are right or wrong.
const PAGE = {
  outcomes: [["all", "All"], ["alarm", "False alarms"], ["miss", "Misses"], ["correct", "Correct"]],
  verdicts: {
    alarm: ["▲ False alarm", "normal, called anomalous"],
    miss: ["▼ Missed", "defective, called normal"],
    found: ["✓ Found", "defective, called anomalous"],
    passed: ["✓ Passed", "normal, called normal"],
    none: ["No verdict", "the detector has no threshold"],
  },
  orders: [
    ["error", "Errors, worst first", (a, b) => b.error - a.error || b.badness - a.badness || byName(a, b)],
    ["high", "Score, highest first", byHighScore],
    ["low", "Score, lowest first", byLowScore],
    ["name", "Name", byName],
    ["kind", "Defect type", (a, b) => a.kind.localeCompare(b.kind, "en") || byHighScore(a, b)],
  ],
  hasKinds: true,
  hasMasks: true,
  contour: "Contour of the decision",

  // What follows from the data: outcomes, and how wrong a score is, its distance beyond the threshold as a share of
  // the category's range of scores.
  derive(items, categories) {
    const ranges = categories.map((_, number) => {
      const scores = items.filter((item) => item.category === number).map((item) => item.score);
      return Math.max(...scores) - Math.min(...scores) || 1;
    });
    for (const item of items) {
      const category = categories[item.category];
      const threshold = category.threshold ?? category.best_f1_threshold ?? 0;
      item.badness = ((item.label ? threshold - item.score : item.score - threshold) / ranges[item.category]);
      if (item.verdict === null) item.outcome = "none";
      else if (item.verdict === item.label) item.outcome = item.label ? "found" : "passed";
      else item.outcome = item.label ? "miss" : "alarm";
      item.error = item.outcome === "alarm" || item.outcome === "miss";
    }
  },

  hasOutcome: (item, outcome) =>
    outcome === "all" || item.outcome === outcome || (outcome === "correct" && !item.error && item.outcome !== "none"),

  kind: (item) => item.kind,

  below: () => [],

  facts(item, category) {
    const facts = [
      ["Category", category.name],
      ["Defect type", item.kind],
      ["Score", shown(item.score)],
      ["Threshold", category.threshold === null ? "none" : shown(category.threshold)],
      ["Verdict", PAGE.verdicts[item.outcome].join(": ")],
      ["Map", `${shown(item.heat.low)} to ${shown(item.heat.high)}`],
      ["Colours", category.scale.map(shown).join(" to ")],
      ["Contour at", category.contour === null ? "none: no masks to find it by" : shown(category.contour)],
    ];
    if (item.label && item.mask === undefined) facts.push(["Mask", "none"]);
    return facts;
  },
};
