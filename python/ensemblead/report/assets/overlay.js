
// Pictures: heat maps coloured on one scale, and outlines of masks and decisions.

// 256 colours, interpolated between evenly spaced ones ("#rrggbb").
function colorTable(anchors) {
  const table = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(place), anchors.length - 2);
    for (let k = 0; k < 3; k++) {
      const [a, b] = [anchors[low], anchors[low + 1]].map((text) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16));
      table[3 * i + k] = Math.round(a + (b - a) * (place - low));
    }
  }
  return table;
}

// The grey levels of an image: {width, height, levels}.
async function greyLevels(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const levels = new Uint8Array(canvas.width * canvas.height);
  for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i];
  return { width: canvas.width, height: canvas.height, levels };
}

// How opaque a colour at `strength` (0..1) of the scale is when the slider stands at `blend` (0..1): not at all, then
// the more the stronger, at last all alike.
function opacity(strength, blend) {
  const middle = 0.85 * strength;
  return blend <= 0.5 ? 2 * blend * middle : middle + (1 - middle) * (2 * blend - 1);
}

// Draw a heat map: `heat` has grey levels and the values `low` and `high` of levels 0 and 255.
function paint(canvas, heat, scale, blend, table) {
  const colors = new Uint32Array(256);
  const bytes = new Uint8Array(colors.buffer);
  for (let level = 0; level < 256; level++) {
    const value = heat.low + ((heat.high - heat.low) * level) / 255;
    const strength = Math.min(1, Math.max(0, (value - scale[0]) / (scale[1] - scale[0])));
    const color = 3 * Math.round(255 * strength);
    for (let k = 0; k < 3; k++) bytes[4 * level + k] = table[color + k];
    bytes[4 * level + 3] = Math.round(255 * opacity(strength, blend));
  }
  if (canvas.width !== heat.width || canvas.height !== heat.height) {
    canvas.width = heat.width;
    canvas.height = heat.height;
  }
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(heat.width, heat.height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = colors[heat.levels[i]];
  context.putImageData(pixels, 0, 0);
}

// Closed outlines of levels >= threshold as an SVG path, in pixels: marching squares between the pixels' centres.
function outline({ width, height, levels }, threshold) {
  const outside = threshold - 1;
  const value = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? outside : levels[y * width + x]);
  const row = width + 2;
  // Edges of the lattice by number: even from (x, y) to the right, odd down.
  const across = (x, y) => 2 * ((y + 1) * row + x + 1);
  const next = new Map(); // from edge to edge, with what is inside on the left
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const inside =
        (value(x, y) >= threshold) +
        2 * (value(x + 1, y) >= threshold) +
        4 * (value(x + 1, y + 1) >= threshold) +
        8 * (value(x, y + 1) >= threshold);
      if (inside === 0 || inside === 15) continue;
      const edges = [across(x, y), across(x + 1, y) + 1, across(x, y + 1), across(x, y) + 1]; // top, right, bottom, left
      for (const [from, to] of SEGMENTS[inside]) next.set(edges[from], edges[to]);
    }
  }
  const place = (edge) => {
    const down = edge % 2;
    const cell = (edge - down) / 2;
    const [x, y] = [(cell % row) - 1, Math.floor(cell / row) - 1];
    const [a, b] = [value(x, y), value(x + 1 - down, y + down)];
    const part = a === b ? 0.5 : Math.min(1, Math.max(0, (threshold - a) / (b - a)));
    return `${(x + 0.5 + (down ? 0 : part)).toFixed(2)} ${(y + 0.5 + (down ? part : 0)).toFixed(2)}`;
  };
  const loops = [];
  while (next.size > 0) {
    const points = [];
    let edge = next.keys().next().value;
    while (next.has(edge)) {
      points.push(place(edge));
      const following = next.get(edge);
      next.delete(edge);
      edge = following;
    }
    loops.push(`M${points.join("L")}Z`);
  }
  return loops.join("");
}

// By which corners are inside (1 upper left, 2 upper right, 4 lower right, 8 lower left): edges 0 top to 3 left.
const SEGMENTS = {
  1: [[3, 0]], 2: [[0, 1]], 3: [[3, 1]], 4: [[1, 2]], 5: [[3, 0], [1, 2]], 6: [[0, 2]], 7: [[3, 2]],
  8: [[2, 3]], 9: [[2, 0]], 10: [[0, 1], [2, 3]], 11: [[2, 1]], 12: [[1, 3]], 13: [[1, 0]], 14: [[0, 3]],
};
