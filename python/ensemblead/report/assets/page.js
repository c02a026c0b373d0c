
// The gallery. Texts from the data are only ever set as text, never parsed as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const { categories, colors, items } = JSON.parse(byId("data").textContent);
  if (items.length === 0) return;
  const table = colorTable(colors);
  const SVG = "http://www.w3.org/2000/svg";
  const OUTCOMES = [["all", "All"], ["alarm", "False alarms"], ["miss", "Misses"], ["correct", "Correct"]];
  const VERDICTS = {
    alarm: ["▲ False alarm", "normal, called anomalous"],
    miss: ["▼ Missed", "defective, called normal"],
    found: ["✓ Found", "defective, called anomalous"],
    passed: ["✓ Passed", "normal, called normal"],
    none: ["No verdict", "the detector has no threshold"],
  };

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // A text that may be broken after slashes and underscores.
  const breakable = (text) => text.split(/(?<=[/_])/).flatMap((part) => [part, document.createElement("wbr")]);

  const shown = (value) => (Math.abs(value) >= 1000 ? value.toPrecision(5) : value.toFixed(Math.abs(value) < 1 ? 4 : 3));

  // --- what is derived from the data ---------------------------------------------------------------------------------
  // How wrong a score is: its distance beyond the threshold, as a share of the category's range of scores.
  const ranges = categories.map((_, number) => {
    const scores = items.filter((item) => item.category === number).map((item) => item.score);
    return Math.max(...scores) - Math.min(...scores) || 1;
  });
  for (const [position, item] of items.entries()) {
    const category = categories[item.category];
    const threshold = category.threshold ?? category.best_f1_threshold ?? 0;
    item.position = position;
    item.badness = ((item.label ? threshold - item.score : item.score - threshold) / ranges[item.category]);
    if (item.verdict === null) item.outcome = "none";
    else if (item.verdict === item.label) item.outcome = item.label ? "found" : "passed";
    else item.outcome = item.label ? "miss" : "alarm";
    item.error = item.outcome === "alarm" || item.outcome === "miss";
  }

  // --- one picture ---------------------------------------------------------------------------------------------------
  const decoded = new Map(); // source -> promise of grey levels
  function levelsOf(source) {
    if (!decoded.has(source)) decoded.set(source, greyLevels(source));
    return decoded.get(source);
  }

  function outlined(style) {
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("aria-hidden", "true");
    const paths = ["halo", style].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      drawing.append(path);
      return path;
    });
    const draw = (shape, threshold) => {
      drawing.setAttribute("viewBox", `0 0 ${shape.width} ${shape.height}`);
      const d = outline(shape, threshold);
      for (const path of paths) path.setAttribute("d", d);
    };
    return [drawing, draw];
  }

  // The picture of an item as a node, and functions to load and to redraw it.
  function picture(item, blend) {
    if (item.photo === undefined) {
      const note = make("span", { class: "gone" }, "The photograph could not be read.");
      return { node: make("span", { class: "stage" }, note), load() {}, redraw() {} };
    }
    const category = categories[item.category];
    const ratio = item.width / item.height;
    const [top, left, bottom, right] = item.seen ?? [0, 0, 1, 1];
    const frame = make("span", { class: "frame" });
    frame.style.aspectRatio = `${item.width} / ${item.height}`;
    frame.style.width = `${100 * Math.min(1, ratio)}%`;
    const image = make("img", { alt: "" });
    const seen = make("span", { class: bottom - top < 0.999 || right - left < 0.999 ? "seen part" : "seen" });
    for (const [side, part] of Object.entries({ top, left, bottom: 1 - bottom, right: 1 - right })) {
      seen.style[side] = `${100 * part}%`;
    }
    const canvas = make("canvas", { "aria-hidden": "true" });
    const [decision, drawDecision] = outlined("decided");
    const [mask, drawMask] = outlined("truth");
    seen.append(canvas, decision);
    frame.append(image, seen, mask);
    let heat = null;
    let loading = null;
    const redraw = () => {
      decision.style.display = state.decision ? "" : "none";
      mask.style.display = state.mask ? "" : "none";
      if (heat !== null) paint(canvas, heat, category.scale, blend() / 100, table);
    };
    const load = () => {
      loading ??= (async () => {
        image.src = item.photo;
        heat = { ...(await levelsOf(item.heat.src)), low: item.heat.low, high: item.heat.high };
        if (category.contour !== null && heat.high > heat.low) {
          drawDecision(heat, (255 * (category.contour - heat.low)) / (heat.high - heat.low));
        }
        if (item.mask !== undefined) drawMask(await levelsOf(item.mask), 127.5);
        redraw();
      })();
      return loading;
    };
    return { node: make("span", { class: "stage" }, frame), load, redraw };
  }

  // --- cards ---------------------------------------------------------------------------------------------------------
  const state = { category: "all", kind: "all", outcome: "all", order: "error", mask: true, decision: true };
  const seer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) cards.get(entry.target).picture.load();
  }, { rootMargin: "400px" });
  const cards = new Map(); // node -> {item, picture}

  function card(item) {
    const slider = make("input", {
      type: "range", min: 0, max: 100, step: 5, class: "own", "aria-label": `Image to heat map, ${item.name}`,
    });
    slider.value = byId("blend").value;
    const drawn = picture(item, () => Number(slider.value));
    const open = make("button", { type: "button", class: "open", "aria-label": `Look closer: ${item.name}` }, drawn.node);
    const verdict = make("p", { class: item.error ? "verdict error" : "verdict" }, VERDICTS[item.outcome][0]);
    const several = categories.length > 1 ? `${categories[item.category].name} · ` : "";
    const caption = make("div", { class: "caption" },
      make("h3", { class: "name" }, ...breakable(item.name)),
      make("span", { class: "kind" }, ...breakable(several + item.kind)),
      make("span", { class: "score" }, shown(item.score)),
      verdict);
    if (item.similar) {
      const title = make("p", { class: "similar-title" }, "Most similar in the index");
      const lines = item.similar.map(([value, name]) => make("li", {}, `${value.toFixed(4)} `, ...breakable(name)));
      caption.append(make("div", { class: "similar" }, title, make("ol", {}, ...lines)));
    }
    const node = make("li", { class: "card" }, open, caption, slider);
    slider.addEventListener("input", drawn.redraw);
    open.addEventListener("click", () => detail.open(item));
    const entry = { item, node, picture: drawn, slider, button: open };
    cards.set(node, entry);
    item.card = entry;
    seer.observe(node);
    return entry;
  }

  // --- sorting and filtering -----------------------------------------------------------------------------------------
  const byName = (a, b) => a.category - b.category || a.name.localeCompare(b.name, "en", { numeric: true });
  const ORDERS = {
    error: (a, b) => b.error - a.error || b.badness - a.badness || byName(a, b),
    high: (a, b) => b.score - a.score || byName(a, b),
    low: (a, b) => a.score - b.score || byName(a, b),
    name: byName,
    kind: (a, b) => a.kind.localeCompare(b.kind, "en") || b.score - a.score || byName(a, b),
  };
  const hasOutcome = (item, outcome) =>
    outcome === "all" || item.outcome === outcome || (outcome === "correct" && !item.error && item.outcome !== "none");
  const inPlace = (item) =>
    (state.category === "all" || item.category === Number(state.category)) &&
    (state.kind === "all" || state.kind === `=${item.kind}`); // a type may be called "all"
  let visible = items;

  function update() {
    const place = items.filter(inPlace);
    for (const [outcome] of OUTCOMES) {
      byId(`count-${outcome}`).textContent = place.filter((item) => hasOutcome(item, outcome)).length;
    }
    visible = place.filter((item) => hasOutcome(item, state.outcome)).sort(ORDERS[state.order]);
    byId("cards").replaceChildren(...visible.map((item) => item.card.node));
    byId("count").textContent = `${visible.length} of ${items.length} images`;
    byId("nothing").hidden = visible.length > 0;
    const scales = new Set(place.map((item) => categories[item.category].scale.map(shown).join(" to ")));
    byId("scale-text").textContent = scales.size === 1 ? [...scales][0] : "one scale per category";
  }

  function options(select, entries) {
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  }

  function listKinds() {
    const kinds = new Set(items.filter((i) => state.category === "all" || i.category === Number(state.category)).map((i) => `=${i.kind}`));
    if (!kinds.has(state.kind)) state.kind = "all";
    options(byId("kind"), [["all", "All"], ...[...kinds].sort().map((kind) => [kind, kind.slice(1)])]);
    byId("kind").value = state.kind;
  }

  function redrawAll() {
    for (const entry of cards.values()) entry.picture.redraw();
    detail.redraw();
  }

  // --- the detail view -----------------------------------------------------------------------------------------------
  const detail = (() => {
    const dialog = byId("detail");
    const slider = byId("detail-blend");
    let item = null;
    let drawn = null;

    function show(next) {
      item = next;
      const category = categories[item.category];
      byId("detail-name").textContent = item.name;
      byId("detail-place").textContent = `${visible.indexOf(item) + 1} of ${visible.length}`;
      drawn = picture(item, () => Number(slider.value));
      byId("detail-stage").replaceChildren(drawn.node);
      drawn.load();
      const facts = [
        ["Category", category.name],
        ["Defect type", item.kind],
        ["Score", shown(item.score)],
        ["Threshold", category.threshold === null ? "none" : shown(category.threshold)],
        ["Verdict", VERDICTS[item.outcome].join(": ")],
        ["Map", `${shown(item.heat.low)} to ${shown(item.heat.high)}`],
        ["Colours", category.scale.map(shown).join(" to ")],
        ["Contour at", category.contour === null ? "none: no masks to find it by" : shown(category.contour)],
      ];
      if (item.label && item.mask === undefined) facts.push(["Mask", "none"]);
      for (const [value, name] of item.similar ?? []) facts.push([`Similar, ${value.toFixed(4)}`, name]);
      byId("detail-facts").replaceChildren(...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
      byId("detail-previous").disabled = visible[0] === item;
      byId("detail-next").disabled = visible[visible.length - 1] === item;
    }

    function step(by) {
      const next = visible[visible.indexOf(item) + by];
      if (next === undefined) return;
      const focused = document.activeElement;
      show(next);
      if (focused.disabled) byId("detail-close").focus(); // a disabled button would lose the keyboard
    }

    slider.addEventListener("input", () => drawn.redraw());
    byId("detail-previous").addEventListener("click", () => step(-1));
    byId("detail-next").addEventListener("click", () => step(1));
    byId("detail-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.target === slider || event.shiftKey || event.altKey || event.ctrlKey || event.metaKey) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      step(by);
    });
    dialog.addEventListener("close", () => {
      byId("detail-stage").replaceChildren();
      item.card.button.focus();
      drawn = null;
    });
    return {
      open(next) {
        slider.value = next.card.slider.value;
        show(next);
        dialog.showModal();
        const first = byId(byId("detail-next").disabled ? "detail-close" : "detail-next");
        first.focus({ preventScroll: true });
        dialog.scrollTop = 0;
      },
      redraw() { drawn?.redraw(); },
    };
  })();

  // --- start ---------------------------------------------------------------------------------------------------------
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("tools").reset(); // some browsers keep old settings over a reload
  options(byId("category"), [["all", "All"], ...categories.map(({ name }, number) => [String(number), name])]);
  byId("category-tool").hidden = categories.length === 1;
  byId("outcomes").append(...OUTCOMES.map(([value, text]) => {
    const input = make("input", { type: "radio", name: "outcome", value });
    input.checked = value === "all";
    input.addEventListener("change", () => { state.outcome = value; update(); });
    return make("label", {}, input, make("span", {}, `${text} `, make("b", { id: `count-${value}` })));
  }));
  byId("category").addEventListener("change", (event) => { state.category = event.target.value; listKinds(); update(); });
  byId("kind").addEventListener("change", (event) => { state.kind = event.target.value; update(); });
  byId("order").addEventListener("change", (event) => { state.order = event.target.value; update(); });
  byId("blend").addEventListener("input", (event) => {
    for (const entry of cards.values()) entry.slider.value = event.target.value;
    redrawAll();
  });
  for (const name of ["mask", "decision"]) {
    const boxes = [byId(`show-${name}`), byId(`detail-${name}`)];
    for (const box of boxes) {
      box.addEventListener("change", () => {
        state[name] = box.checked;
        for (const other of boxes) other.checked = box.checked;
        redrawAll();
      });
    }
  }
  function filter(category, kind, outcome) {
    Object.assign(state, { category, kind, outcome });
    byId("category").value = category;
    const input = document.querySelector(`#outcomes input[value="${outcome}"]`);
    input.checked = true;
    listKinds();
    update();
    return input;
  }
  byId("reset").addEventListener("click", () => filter("all", "all", "all").focus());
  // Types of defect and their misses, wherever they are named, lead to their images, if some are on the page.
  for (const node of document.querySelectorAll("[data-kind]")) {
    const { category, kind, outcome = "all" } = node.dataset;
    const isMeant = (item) => item.category === Number(category) && item.kind === kind && hasOutcome(item, outcome);
    if (!items.some(isMeant)) continue;
    const link = make("a", { href: "#gallery" }, ...node.childNodes);
    link.addEventListener("click", () => filter(categories.length > 1 ? category : "all", `=${kind}`, outcome));
    node.append(link);
  }
  const withContour = categories.some(({ contour }) => contour !== null);
  const withMasks = items.some(({ mask }) => mask !== undefined);
  for (const [name, there] of [["decision", withContour], ["mask", withMasks]]) {
    state[name] = there;
    for (const box of [byId(`show-${name}`), byId(`detail-${name}`)]) {
      box.checked = there;
      box.disabled = !there;
    }
  }
  const bar = byId("scale").getContext("2d");
  const strip = bar.createImageData(256, 1);
  for (let i = 0; i < 256; i++) strip.data.set([...table.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  bar.putImageData(strip, 0, 0);
  items.forEach(card);
  listKinds();
  update();
  byId("gallery-body").hidden = false;
})();
