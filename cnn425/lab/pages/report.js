"use strict";
// The report: every layer against its namesake, or two whole networks layer by layer.

const data = JSON.parse(at("data").textContent);

function bar(share, words, line = null, over = false) {  // a length from 0 to 1; `line` marks what is allowed
  const length = Math.max(0, Math.min(1, share)) * 100;
  const rail = element("span", {}, element("i", { style: `left: 0; width: ${length}%`, class: over ? "over" : "" }));
  if (line !== null) rail.append(element("u", { style: `left: ${Math.min(1, line) * 100}%` }));
  return element("div", { class: "bar" }, rail, element("span", { class: over ? "bad" : "" }, words));
}

function ratioBar(ratio, words) {  // 1 in the middle; a quarter at the left end, four times at the right
  if (!isFinite(ratio) || ratio <= 0) return element("span", {}, words);
  const place = Math.max(0, Math.min(1, 0.5 + Math.log2(ratio) / 4)) * 100, [left, width] = place < 50 ? [place, 50 - place] : [50, place - 50];
  const rail = element("span", {}, element("i", { style: `left: ${left}%; width: ${width}%`, class: ratio > 1 ? "over" : "" }), element("u", { style: "left: 50%" }));
  return element("div", { class: "bar" }, rail, element("span", {}, words));
}

const factor = (a, b) => (b ? a / b : NaN);
const twice = (ratio) => (isFinite(ratio) ? ratio.toFixed(2) : "");
const cell = (content, attributes = {}) => element("td", attributes, content);
const heads = (words) => element("tr", {}, ...words.map((word) => element("th", { scope: "col" }, word)));

// ---- every layer against torch's

function layerRow(row) {
  const worst = (start) => Object.entries(row.shares).filter(([name]) => name.startsWith(start)).reduce((a, b) => (b[1] > a[1] ? b : a), ["", 0]);
  const error = (start) => { const [name, share] = worst(start); return name ? bar(share, row.errors[name].toExponential(1), 1, share > 1) : "0"; };
  const orders = [["1st", row.gradcheck], ["2nd", row.gradgradcheck]];
  const wrong = orders.filter(([, words]) => words && words !== "not run"), derivatives = wrong.length ? element("span", { class: "bad" }, "wrong") : orders[0][1] === "not run" ? "not run" : "1st, 2nd right";
  const each = Object.keys(row.errors).map((name) => `${name}: ${row.errors[name].toExponential(1)}, ${(100 * row.shares[name]).toFixed(1)} % of what is allowed`);
  const more = element("tr", { class: "more", hidden: "" }, element("td", { colspan: 7 }, ...[`inputs ${row.case}`, ...each, row.wrong, ...wrong.map((pair) => pair.join(": "))].filter(Boolean).map((words) => element("p", {}, words)), element("p", {}, "again: ", element("code", {}, row.repeat))));
  const button = element("button", { type: "button", "aria-expanded": "false", onclick: () => { more.hidden = !more.hidden; button.setAttribute("aria-expanded", String(!more.hidden)); } }, row.agrees ? "agrees" : element("span", { class: "bad" }, "differs"));
  return [element("tr", {}, cell(row.layer), cell(error("output")), cell(error("gradient")), cell(derivatives), cell(ratioBar(row.time_ratio, `${twice(row.time_ratio)}  (${row.ours_ms.toFixed(2)} / ${row.torch_ms.toFixed(2)} ms)`)), cell(ratioBar(row.memory_ratio, twice(row.memory_ratio))), cell(button)), more];
}

function allLayers() {
  at("heading").textContent = "Our layers beside torch's";
  const good = data.rows.filter((row) => row.agrees).length;
  at("summary").textContent = `${good} of ${data.rows.length} layers agree. An error bar is full where the error is all that is allowed; times and memory are ours / torch's, 1 in the middle.`;
  at("rows").append(element("table", {}, heads(["layer", "error of the output", "of the gradients", "derivatives", "time", "memory", "verdict, and more"]), ...data.rows.flatMap(layerRow)));
}

// ---- two networks

const digits = (v) => minus(String(Number(v.toPrecision(7))));

function logBar(units, allowed) {  // from a tenth of a unit to a hundred million
  const scale = (v) => Math.log10(Math.max(v, 0.1) / 0.1) / 9;
  return bar(units ? scale(units) : 0, units === 0 ? "0" : units === null ? "∞" : short(units), scale(allowed), units === null || units > allowed);
}

function twoNetworks() {
  at("heading").textContent = `${data.first} | ${data.second}`;
  at("summary").textContent = `Of the two networks on the same ${data.options.batch} pictures: ${data.where}.`;
  const table = element("table", {}, heads(["layer", "what", "so far", "by the layer alone", "worst entry", data.first, data.second, "time", "memory"]));
  let found = false;
  for (const layer of data.layers)
    layer.quantities.forEach((q, k) => {
      const parting = !found && data.where.includes(`layer ${layer.name} (${layer.kind}), ${q.name}:`);
      found ||= parting;
      const [time, memory] = [factor(...layer.ms), factor(...layer.bytes)];
      table.append(element("tr", { class: `${k ? "" : "start"} ${parting ? "parting" : ""}` }, cell(k ? "" : `${layer.name} ${layer.kind}`), cell(q.name), cell(logBar(q.so_far, q.allowed)), cell(logBar(q.alone, q.allowed)),
        cell(`[${q.at.join(", ")}]`), cell(digits(q.first)), cell(digits(q.second)), cell(k ? "" : ratioBar(time, twice(time))), cell(k ? "" : ratioBar(memory, twice(memory)))));
    });
  at("rows").append(table);
  at("about").append(element("p", {}, "One unit of rounding is half the distance of neighbouring numbers at the largest magnitude of the tensor, in the coarser of the two precisions; bars are logarithmic, the line marks what is allowed. “So far”: each network with its own numbers from the image on. “By the layer alone”: the first network's layer with the second network's numbers. Adjoints are those of the mean cross-entropy. Time and memory: forward and backward of the layer, first / second."));
}

if (data.rows) allLayers(); else twoNetworks();
document.title = at("heading").textContent;
const o = data.options;
at("about").append(element("p", {}, `torch ${data.torch}, ${data.threads} ${data.threads === 1 ? "thread" : "threads"}, ${data.rows ? `${o.dtype}, ` : ""}${o.device}, batch ${o.batch}, seed ${o.seed}, medians of ${o.repeats} runs.`));
