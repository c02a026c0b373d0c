
// The page of a service: photographs are sent one after the other, and their results shown, the newest first.
(() => {
  const byId = (id) => document.getElementById(id);
  const { colors, scale } = JSON.parse(byId("data").textContent);
  const table = colorTable(colors);
  const number = (value) => Number(value.toPrecision(4)).toString();
  let refused = []; // files that await a token
  let queue = Promise.resolve();

  function element(kind, className, text = "") {
    const made = document.createElement(kind);
    made.className = className;
    made.textContent = text;
    return made;
  }

  async function answerOf(file) {
    const form = new FormData();
    form.append("files", file, file.name);
    const token = byId("token").value;
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch("predict?map=png", { method: "POST", body: form, headers });
    if (response.status === 401) return null;
    // An answer that is no JSON is a proxy's, or of an error that nobody has foreseen.
    const body = await response.json().catch(() => ({ detail: `status ${response.status}` }));
    const [image] = body.images ?? [];
    if (image === undefined) return { error: { message: body.detail } };
    return image;
  }

  // The photograph with the heat map over the part that the network saw.
  async function picture(file, result) {
    const stage = element("div", "stage");
    const frame = element("div", "frame");
    const photo = new Image();
    photo.alt = `${file.name}, with its heat map`;
    photo.src = URL.createObjectURL(file);
    try {
      await photo.decode();
    } catch {
      photo.remove();
      frame.append(element("span", "gone", "The browser cannot show this format; the service has read it."));
    }
    URL.revokeObjectURL(photo.src); // else the browser keeps every photograph until the page is closed
    if (photo.complete && photo.naturalWidth) frame.append(photo);
    if (result.map) {
      const { box, low, high, data } = result.map;
      const [height, width] = result.size;
      const heat = { ...(await greyLevels(`data:image/png;base64,${data}`)), low, high };
      const canvas = element("canvas", "heat");
      paint(canvas, heat, scale ?? [low, Math.max(high, low + 1e-6)], 0.5, table);
      const [top, left, bottom, right] = box;
      canvas.style.top = `${(100 * top) / height}%`;
      canvas.style.left = `${(100 * left) / width}%`;
      canvas.style.width = `${(100 * (right - left)) / width}%`;
      canvas.style.height = `${(100 * (bottom - top)) / height}%`;
      const shape = Math.max(width, height);
      frame.style.width = `${(100 * width) / shape}%`;
      frame.style.height = `${(100 * height) / shape}%`;
      frame.append(canvas);
    }
    stage.append(frame);
    return stage;
  }

  async function show(file, result) {
    const card = element("article", "card");
    card.append(element("h3", "name", file.name));
    if (result.error) {
      card.append(element("p", "verdict error", `No result: ${result.error.message}`));
    } else {
      const known = typeof result.threshold === "number";
      const threshold = known ? `, threshold ${number(result.threshold)}` : "";
      const verdict = !known ? "no verdict" : result.is_anomalous ? "anomalous" : "normal";
      card.prepend(await picture(file, result));
      card.append(element("p", `verdict ${verdict}`, verdict));
      card.append(element("p", "score muted", `score ${number(result.score)}${threshold}`));
    }
    byId("results").prepend(card);
    while (byId("results").children.length > 48) byId("results").lastElementChild.remove();
  }

  async function handle(file) {
    byId("status").textContent = `Sending ${file.name} …`;
    try {
      const result = await answerOf(file);
      if (result === null) {
        refused.push(file);
        byId("token-line").hidden = false;
        byId("status").textContent = "The service wants a token, or another one.";
        return;
      }
      await show(file, result);
      byId("status").textContent = `${file.name}: done.`;
    } catch (error) {
      byId("status").textContent = `${file.name}: the service does not answer (${error.message}).`;
    }
  }

  function take(files) {
    for (const file of files) queue = queue.then(() => handle(file));
  }

  byId("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    take(refused.splice(0));
  });
  const drop = byId("drop");
  for (const name of ["dragover", "dragenter"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
})();
