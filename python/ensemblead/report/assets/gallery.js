
// The gallery. PAGE says what is particular to a page: see evaluation.js.
(() => {
  const { categories, colors, items, similar } = JSON.parse(byId("data").textContent);
  if (items.length === 0) return;
  const table = colorTable(colors);
  const SVG = "http://www.w3.org/2000/svg";
  PAGE.derive(items, categories);
  for (const [position, item] of items.entries()) item.position = position;

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

  // The boxes of an item's regions, in pixels of its photograph; null if it has none.
  function boxed(item) {
    if (!item.boxes?.length) return null;
    const drawing = document.createElementNS(SVG, "svg");
    for (const [name, text] of [["preserveAspectRatio", "none"], ["aria-hidden", "true"],
      ["viewBox", `0 0 ${item.width} ${item.height}`], ["class", "boxes"]]) drawing.setAttribute(name, text);
    const d = item.boxes.map(([x, y, width, height]) => `M${x} ${y}h${width}v${height}h${-width}Z`).join("");
    for (const name of ["halo", "box"]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("d", d);
      drawing.append(path);
    }
    return drawing;
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
    const boxes = boxed(item);
    seen.append(canvas, decision);
    if (boxes !== null) frame.append(boxes);
    frame.prepend(image, seen, mask);
    let heat = null;
    let loading = null;
    const redraw = () => {
      for (const shown of [decision, boxes]) if (shown !== null) shown.style.display = state.decision ? "" : "none";
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
  const state = { category: "all", kind: "all", outcome: "all", order: PAGE.orders[0][0], mask: true, decision: true };
  const seer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) cards.get(entry.target).picture.load();
  }, { rootMargin: "400px" });
  const cards = new Map(); // node -> {item, picture}

  // The similar images of a finding, as links to their files.
  function neighbours(item) {
    const lines = item.similar.map(([value, place]) => {
      const { name, href, src } = similar[place];
      const inner = src === undefined
        ? make("span", { class: "gone" }, "It could not be read.")
        : make("img", { src, alt: "", loading: "lazy" });
      const open = make("a", { href, "aria-label": `Open ${name}` }, inner);
      return make("li", {}, open, make("span", {}, `${value.toFixed(4)} `, ...breakable(name)));
    });
    return make("ol", {}, ...lines);
  }

  function card(item) {
    const slider = make("input", {
      type: "range", min: 0, max: 100, step: 5, class: "own", "aria-label": `Image to heat map, ${item.name}`,
    });
    slider.value = byId("blend").value;
    const drawn = picture(item, () => Number(slider.value));
    const open = make("button", { type: "button", class: "open", "aria-label": `Look closer: ${item.name}` }, drawn.node);
    const verdict = make("p", { class: item.error ? "verdict error" : "verdict" }, PAGE.verdicts[item.outcome][0]);
    const several = categories.length > 1 ? `${categories[item.category].name} · ` : "";
    const caption = make("div", { class: "caption" },
      make("h3", { class: "name" }, ...breakable(item.name)),
      make("span", { class: "kind" }, ...breakable(several + PAGE.kind(item))),
      make("span", { class: "score" }, shown(item.score)),
      verdict);
    if (item.similar) {
      const title = make("p", {}, "Most similar in the index");
      caption.append(make("div", { class: "similar" }, title, neighbours(item)));
    }
    caption.append(...PAGE.below(item));
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
  const orders = new Map(PAGE.orders.map(([value, , compare]) => [value, compare]));
  const inPlace = (item) =>
    (state.category === "all" || item.category === Number(state.category)) &&
    (state.kind === "all" || state.kind === `=${item.kind}`); // a type may be called "all"
  let visible = items;

  function update() {
    const place = items.filter(inPlace);
    for (const [outcome] of PAGE.outcomes) {
      byId(`count-${outcome}`).textContent = place.filter((item) => PAGE.hasOutcome(item, outcome)).length;
    }
    visible = place.filter((item) => PAGE.hasOutcome(item, state.outcome)).sort(orders.get(state.order));
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
      const facts = PAGE.facts(item, category);
      byId("detail-facts").replaceChildren(...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
      byId("detail-similar").replaceChildren(
        ...(item.similar ? [make("p", {}, "Most similar in the index"), neighbours(item)] : []), ...PAGE.below(item));
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
  options(byId("order"), PAGE.orders.map(([value, text]) => [value, text]));
  options(byId("category"), [["all", "All"], ...categories.map(({ name }, number) => [String(number), name])]);
  byId("category-tool").hidden = categories.length === 1;
  byId("kind-tool").hidden = !PAGE.hasKinds;
  for (const id of ["mask-tool", "detail-mask-tool"]) byId(id).hidden = !PAGE.hasMasks;
  for (const id of ["decision-text", "detail-decision-text"]) byId(id).textContent = PAGE.contour;
  byId("outcomes").append(...PAGE.outcomes.map(([value, text]) => {
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
    const isMeant = (item) => item.category === Number(category) && item.kind === kind && PAGE.hasOutcome(item, outcome);
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
