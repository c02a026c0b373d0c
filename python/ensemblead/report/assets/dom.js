
"use strict";
// Nodes and texts. Texts from the data are only ever set as text, never parsed as HTML.
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A text that may be broken after slashes and underscores.
const breakable = (text) => text.split(/(?<=[/_])/).flatMap((part) => [part, document.createElement("wbr")]);

const shown = (value) => (Math.abs(value) >= 1000 ? value.toPrecision(5) : value.toFixed(Math.abs(value) < 1 ? 4 : 3));

const byName = (a, b) => a.category - b.category || a.name.localeCompare(b.name, "en", { numeric: true });
const byHighScore = (a, b) => b.score - a.score || byName(a, b);
const byLowScore = (a, b) => a.score - b.score || byName(a, b);
