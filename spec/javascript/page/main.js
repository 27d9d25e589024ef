// The page that opens a file: every digest and every rule checked by the second reader, then what is inside.
// Text from a file goes onto the page as text only.

import { Buffer } from "buffer";
import { createHash } from "node:crypto";
import { Fault } from "../fault.js";
import { open } from "../reader.js";

const LONGEST_TABLE = 500;

const answers = document.getElementById("answers");
const drop = document.getElementById("drop");

drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  show([...event.dataTransfer.files]);
});
document.getElementById("file").addEventListener("change", (event) => show([...event.target.files]));

async function show(files) {
  answers.replaceChildren(element("p", "Reading …"));
  const read = await Promise.all(files.map(async (file) => [file.name, Buffer.from(await file.arrayBuffer())]));
  // By content, whatever the name, and by name, so that a wrong bank is called wrong and not missing.
  const given = read.filter(([name]) => name.endsWith(".bank"));
  const banks = new Map([
    ...given.map(([name, data]) => [name.slice(0, -".bank".length), data]),
    ...given.map(([, data]) => [sha256(data), data]),
  ]);
  const adapters = read.filter(([name]) => !name.endsWith(".bank"));
  answers.replaceChildren(...adapters.map(([name, data]) => answer(name, data, banks)));
  if (!adapters.length) answers.replaceChildren(element("p", "Drop the adapter together with its bank."));
}

function answer(name, data, banks) {
  const section = element("section");
  section.append(element("h2", name));
  try {
    section.append(...contents(data, open(data, (hash) => banks.get(hash))));
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    section.append(element("p", `FAILED: ${error.kind}: ${error.part}: ${error.message}`, "bad"));
  }
  return section;
}

function contents(data, { header, values, bodies, digest }) {
  const rows = values.indices.length / values.k;
  return [
    element("p", "Every digest and every rule holds.", "good"),
    table(["", ""], [
      ["digest", digest],
      ["size", `${data.length.toLocaleString("en")} bytes`],
      ["base model", header.base_model[0] ?? "not named"],
      ["bank", `h = ${header.h} vectors of length b = ${header.b}${header.isThin ? ", a file of its own" : ""}`],
      ["sub-vectors", `N = ${rows.toLocaleString("en")}, k = ${values.k} vectors each`],
      ["modules", header.modules.length.toLocaleString("en")],
      ["other tensors", header.tensors.map(([tensor]) => tensor).join(", ") || "none"],
      ...[...header.metadata].map(([key, text]) => [`metadata: ${key}`, text]),
    ]),
    ...usage(values, Number(header.h)),
    folded(`Modules (${header.modules.length})`, table(
      ["module", "in", "out", "rank"],
      header.modules.slice(0, LONGEST_TABLE).map(([module, fanIn, fanOut, rank]) => [module, fanIn, fanOut, rank]),
    )),
    folded("Config", element("pre", header.config ?? "none")),
    folded("Sections", table(
      ["section", "bytes"],
      ["bank", "indices", "weights", ...header.tensors.map(([tensor]) => tensor)].map((part, i) => [part, bodies[i].length]),
    )),
  ];
}

/** How often each vector is selected, as bars. */
function usage({ indices }, h) {
  const counts = new Array(h).fill(0);
  for (const index of indices) counts[index] += 1;
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const unused = counts.filter((count) => count === 0).length;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${h} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Selections of each vector");
  const columns = Math.min(h, 2048); // a pixel each at the most
  for (let column = 0; column < columns; column++) {
    const start = Math.floor((column * h) / columns);
    const stop = Math.floor(((column + 1) * h) / columns);
    const height = (100 * Math.max(...counts.slice(start, stop))) / most;
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const sizes = { x: start, y: 100 - height, width: (stop - start) * 0.9, height };
    for (const [key, size] of Object.entries(sizes)) bar.setAttribute(key, size);
    svg.append(bar);
  }
  return [
    element("h3", "How the bank is used"),
    element("p", `Selections of each vector by index: at most ${most.toLocaleString("en")}; ${unused} of ${h} vectors are never selected.`),
    svg,
  ];
}

function folded(title, content) {
  const details = element("details");
  details.append(element("summary", title), content);
  return details;
}

function table(head, rows) {
  const result = element("table");
  if (head.some((text) => text)) result.append(line("th", head));
  for (const row of rows) result.append(line("td", row));
  return result;
}

function line(cell, texts) {
  const row = element("tr");
  const plain = (text) => typeof text === "string";
  for (const text of texts) row.append(element(cell, plain(text) ? text : text.toLocaleString("en"), plain(text) ? "" : "number"));
  return row;
}

function element(name, text = "", kind = "") {
  const result = document.createElement(name);
  result.textContent = text;
  if (kind) result.className = kind;
  return result;
}

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}
