
// What is particular to the page of predictions: nobody knows who is right, but the reader can say so.
const PAGE = (() => {
  const marks = new Map(); // path -> "false alarm" or "missed defect"
  const counted = (count, one, several = `${one}s`) => `${count} ${count === 1 ? one : several}`;

  function tell() {
    byId("marked").textContent = marks.size === 0 ? "No image is marked." : `${counted(marks.size, "image is", "images are")} marked.`;
    byId("download").disabled = marks.size === 0;
  }

  // A button that marks an image, and takes the mark back. An image has one on its card and one in the detail view.
  function marker(item, mark, text) {
    const isMarked = marks.get(item.path) === mark;
    const button = make("button", { type: "button", class: "mark", "aria-pressed": String(isMarked) }, text);
    Object.assign(button.dataset, { path: item.path, mark });
    button.addEventListener("click", () => {
      if (marks.get(item.path) === mark) marks.delete(item.path);
      else marks.set(item.path, mark);
      for (const other of document.querySelectorAll(".mark")) {
        const { path, mark: own } = other.dataset;
        if (path === item.path) other.setAttribute("aria-pressed", String(marks.get(path) === own));
      }
      tell();
    });
    return button;
  }

  function download() {
    const list = [...marks].map(([path, mark]) => ({ path, mark }));
    const file = new Blob([`${JSON.stringify({ version: 1, marks: list }, null, 1)}\n`], { type: "application/json" });
    const link = make("a", { href: URL.createObjectURL(file), download: "marked.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  byId("download").addEventListener("click", download);
  tell();

  return {
    outcomes: [["all", "All"], ["anomalous", "Anomalous"], ["normal", "Normal"]],
    verdicts: {
      anomalous: ["▲ Anomalous", "the score is above the threshold"],
      normal: ["✓ Normal", "the score is not above the threshold"],
      none: ["No verdict", "the detector has no threshold"],
    },
    orders: [
      ["high", "Score, highest first", byHighScore],
      ["low", "Score, lowest first", byLowScore],
      ["regions", "Regions, most first", (a, b) => (b.regions ?? 0) - (a.regions ?? 0) || byHighScore(a, b)],
      ["name", "Name", byName],
    ],
    hasKinds: false,
    hasMasks: false,
    contour: "Regions and their boxes",

    derive(items) {
      for (const item of items) {
        item.outcome = item.verdict === null ? "none" : item.verdict ? "anomalous" : "normal";
        item.error = item.outcome === "anomalous"; // in bold
      }
    },

    hasOutcome: (item, outcome) => outcome === "all" || item.outcome === outcome,

    kind: (item) => (item.regions === null ? "" : counted(item.regions, "region")),

    below(item) {
      const texts = [];
      if (item.outcome !== "normal") texts.push(["false alarm", "False alarm"]);
      if (item.outcome !== "anomalous") texts.push(["missed defect", "Missed defect"]);
      return [make("div", { class: "marks", role: "group", "aria-label": `Mark ${item.name}` },
        ...texts.map(([mark, text]) => marker(item, mark, text)))];
    },

    facts: (item, category) => [
      ["Score", shown(item.score)],
      ["Threshold", category.threshold === null ? "none" : shown(category.threshold)],
      ["Verdict", PAGE.verdicts[item.outcome].join(": ")],
      ["Regions", item.regions === null ? "not known" : String(item.regions)],
      ["Map", `${shown(item.heat.low)} to ${shown(item.heat.high)}`],
      ["Regions above", category.contour === null ? "not known" : shown(category.contour)],
      ["Colours", category.scale.map(shown).join(" to ")],
      ["File", item.path],
    ],
  };
})();
