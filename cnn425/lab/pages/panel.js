"use strict";
// The chosen unit, in words and numbers: its window times its weights (forward), or what the windows that saw it say (backward).

const MOST_CELLS = 49, MOST_MAPS = 40, MOST_TERMS = 14;

const WORDS = {  // what a layer does: forward, and backward
  image: ["Where everything starts.", "How the target changes with each number of the input."],
  conv: ["Every unit sees a window of the layer before, and all units of one map share one set of weights.", "Each input adds up the contributions of all windows that contain it."],
  local: ["Every unit sees a window of the layer before, with weights of its own.", "Each input adds up the contributions of all windows that contain it."],
  linear: ["Every unit sees everything: its window is the whole layer before.", "Each number adds up what all the units say, for all of them saw it."],
  max: ["A window is reduced to its largest number.", "The adjoint of a window goes to its winner: a max pool routes."],
  average: ["A window is reduced to its mean.", "The adjoint of a window is spread evenly: an average pool shares."],
  lp: ["A window is reduced to its p-norm.", "The adjoint of a window is shared by size."],
  relu: ["Negative values become 0.", "The adjoint passes where the number was positive, and stops elsewhere."],
  sigmoid: ["Every number is squashed between 0 and 1.", "The adjoint is multiplied with y (1 − y)."],
  tanh: ["Every number is squashed between −1 and 1.", "The adjoint is multiplied with 1 − y²."],
  softmax: ["Scores become probabilities: positive and summing to 1.", "A probability can only rise if others fall."],
  loss: ["The cross-entropy: −ln of the probability of the true class, in nats.", "The derivative of the loss with respect to itself is 1."],
  stored: ["Its numbers come from torch and cannot be followed inside.", "What it sends back comes from torch."],
};

const nameOf = (node) => node.title;

function place(node, unit) {  // where a unit is, in words
  const [, depth, height, width] = node.shape;
  if (node.points === 1) return node.maps === 1 ? "" : `unit ${unit}`;
  const map = Math.floor(unit / node.points), slice = Math.floor(unit / (height * width)) % depth;
  const words = [];
  if (node.maps > 1) words.push(`map ${map}`);
  if (depth > 1) words.push(`slice ${slice}`);
  if (height > 1) words.push(`row ${Math.floor(unit / width) % height}`);
  words.push(`column ${unit % width}`);
  return words.join(", ");
}

function tinted(value, scale) {  // the background of a number: its colour, light enough for dark letters
  const [r, g, b] = colour(value, scale * 1.9, false);
  return `background: rgb(${r} ${g} ${b}); color: ${0.3 * r + 0.6 * g + 0.1 * b < 140 ? "#fff" : "#111"}`;
}

class Panel {
  constructor(root, network, choose, closed) {
    [this.root, this.network, this.choose, this.closed] = [root, network, choose, closed];
    this.open = {};  // which map of a window is shown in full, by layer
  }

  show(state) {
    Object.assign(this, state);  // node, unit, way, values, adjoints, target, back, step
    this.source = this.network.nodes[this.node.source];
    const parts = this.way === "forward" ? this.forward() : this.backward();
    const head = element("h2", {}, `${nameOf(this.node)}${place(this.node, this.unit) ? ": " : ""}${place(this.node, this.unit)}`);
    const back = this.back ? [element("button", { type: "button", onclick: this.back }, "← back")] : [];
    const close = element("button", { type: "button", onclick: () => { this.root.replaceChildren(); this.closed(); } }, "close");
    const steps = this.step ? [-1, 1].map((by) => element("button", { type: "button", "aria-label": by < 0 ? "step back" : "step on", onclick: () => this.step(by) }, by < 0 ? "◀" : "▶")) : [];
    this.root.replaceChildren(element("div", { class: "narrow" }, ...steps, " ", close), ...back, head, ...parts.filter(Boolean));
  }

  line(words, kind = "formula") { return element("p", { class: kind }, words); }

  total(words, value) {  // the last line of a sum
    return element("p", { class: "sum" }, words, " = ", element("b", { id: "value" }, long(value)));
  }

  unitButton(node, unit, words) {
    return element("button", { type: "button", onclick: () => this.choose(node.number, unit) }, words);
  }

  // ---- forward

  forward() {
    const { node, unit, source } = this, value = this.values[node.number][unit], x = source && this.values[source.number];
    const what = element("p", {}, WORDS[node.kind][0]);
    if (node.kind === "image") return [what, this.total("ink, 0 paper to 1", value)];
    if (node.kind === "stored") return [this.line(`${node.layer}: ${node.why}.`, "note"), this.total("y, from torch", value)];
    if (node.weights) return [what, ...this.weighted(x, value)];
    if (node.taps) return [what, ...this.pooled(x, value)];
    if (node.kind === "softmax") return [what, ...this.softmax(x, value)];
    if (node.kind === "loss") return [what, this.line("L = −ln p(true class)"), this.total(`−ln ${long(x[this.network.truth])}`, value), this.from(source, this.network.truth)];
    const formula = { relu: ["y = max(0, x)", `max(0, ${long(x[unit])})`], sigmoid: ["y = 1 / (1 + exp(−x))", `1 / (1 + exp(−(${long(x[unit])})))`], tanh: ["y = tanh x", `tanh(${long(x[unit])})`] }[node.kind];
    return [what, this.line(formula[0]), this.total(formula[1], value), this.from(source, unit)];
  }

  from(node, unit) {
    return element("p", {}, "x comes from ", this.unitButton(node, unit, `${nameOf(node)}${place(node, unit) ? ", " : ""}${place(node, unit)}`));
  }

  weighted(x, value) {
    const { node, unit } = this, window = this.network.window(node, unit);
    const [o, i, u] = this.letters(), sizes = `sum over c, ${u.replaceAll(",", ", ")} of`;
    const formula = this.line({
      conv: `y[${o},${i}] = b[${o}] + ${sizes} w[${o},c,${u}] · windows[c,${i},${u}]`,
      local: `y[${o},${i}] = b[${o}${node.biases?.length > node.maps ? `,${i}` : ""}] + ${sizes} w[${i},${o},c,${u}] · windows[c,${i},${u}]`,
      linear: `y[${o}] = b[${o}] + sum over d of w[${o},d] · x[d]`,
    }[node.kind]);
    if (!window) return [formula, this.line(`The weights of this map are left out, or the page would be too large: it holds those of maps 0 to ${node.kept - 1}. The number itself comes from torch.`, "note"), this.total("y", value)];
    const maps = window.map((w) => ({ ...w, cells: w.cells.map((cell) => ({ ...cell, at: cell.pixel, value: cell.pixel < 0 ? 0 : x[cell.pixel], factor: cell.weight })) }));
    const bias = this.network.biasAt(node, Math.floor(unit / node.P), unit % node.P);
    const sum = this.sums(maps);
    const note = { conv: "Move to another position in this map: the weights stay the same.", local: "Move to another position in this map: the weights change, since every position has its own.", linear: "Every unit has a weight of its own for every number of the layer before." }[node.kind];
    return [formula, this.total(`sum ${long(sum)} + bias ${long(bias)}`, value), this.follower(value), this.line(note, "note"), ...this.detail(maps, this.source, ["pixels", "weights"], node.kernel)];
  }

  letters() {  // the numbers of the chosen map and position, and the letters of the cells
    const [, depth, height, width] = this.node.shape, d = Number(this.node.layer.at(-2)) || 2, p = this.unit % this.node.points;
    const position = [Math.floor(p / (height * width)) % depth, Math.floor(p / width) % height, p % width];
    return [Math.floor(this.unit / this.node.points), position.slice(3 - d).join(","), ["u", "v", "w"].slice(0, d).join(",")];
  }

  follower(value) {  // the activation behind a sum
    const next = this.node.readers.find((reader) => ["relu", "sigmoid", "tanh"].includes(reader.kind));
    if (!next) return null;
    const y = this.values[next.number][this.unit], words = { relu: `max(0, ${long(value)})`, sigmoid: `sigmoid(${long(value)})`, tanh: `tanh(${long(value)})` }[next.kind];
    return element("p", { class: "sum" }, "then ", this.unitButton(next, this.unit, nameOf(next)), ` ${words} = ${long(y)}`);
  }

  pooled(x, value) {
    const { node, unit } = this, [window] = this.network.window(node, unit);
    const winner = node.kind === "max" ? Math.floor(unit / node.P) * node.stride + node.winners[unit] : -1;
    const cells = window.cells.map((cell) => ({ at: cell.pixel, value: cell.pixel < 0 ? 0 : x[cell.pixel], winner: cell.pixel === winner && winner >= 0 }));
    const sum = cells.reduce((total, cell) => total + cell.value, 0), divisor = node.divisors ? node.divisors[unit % node.P] : 0;
    const [c, i, u] = this.letters(), over = `over ${u.replaceAll(",", ", ")} of windows[${c},${i},${u}]`;
    const lines = {
      max: () => [this.line(`y[${c},${i}] = max ${over}`), this.total("the largest", value)],
      average: () => [this.line(`y[${c},${i}] = mean ${over}`), this.total(`sum ${long(sum)} / ${divisor}`, value)],
      lp: () => [this.line(`y[${c},${i}] = (sum ${over}^${node.norm})^(1/${node.norm})`), this.total("y", value)],
    }[node.kind]();
    return [...lines, this.grid(cells, this.source, node.kernel), node.kind === "max" ? this.line("The winner is outlined; on a tie the first in reading order wins.", "note") : null];
  }

  softmax(x, value) {
    const most = Math.max(...x), sum = x.reduce((total, v) => total + Math.exp(v - most), 0);
    return [this.line("p[o] = exp(x[o]) / sum over k of exp(x[k])"), this.line("The largest score is subtracted from every score first, which changes nothing and keeps the numbers small.", "note"), this.total(`exp(${long(x[this.unit] - most)}) / ${long(sum)}`, value), this.from(this.source, this.unit)];
  }

  // ---- backward

  backward() {
    const { node, unit } = this, adjoints = this.adjoints[node.number], what = element("p", {}, WORDS[node.kind === "image" ? "image" : "conv"][1]);
    if (!adjoints) return [this.line(this.target === "loss" ? "The loss does not depend on it." : "The score is chosen as the target; this comes after it.", "note")];
    const value = adjoints[unit];
    if (this.target === "loss" && node.kind === "loss") return [this.line("The derivative of the loss with respect to itself: the backward pass starts here."), this.total("adjoint", value)];
    if (this.target !== "loss" && node.number === this.network.scores) return [this.line("The target itself: the backward pass starts with 1 here and 0 elsewhere."), this.total("adjoint", value)];
    const readers = node.readers.filter((reader) => this.adjoints[reader.number] && reader.kind !== "stored");
    if (node.adjoints) return [this.line("Part of this adjoint is made by layers or weights that this page does not have; the number comes from torch.", "note"), this.total("adjoint", value), ...readers.flatMap((reader) => this.said(reader, false))];
    if (readers.length === 0) return [this.line("Nothing that the target depends on reads this number.", "note"), this.total("adjoint", value)];
    if (readers.length === 1) return this.said(readers[0], true, node.kind === "image" ? what : null);
    return [what, this.total(`${readers.length} layers read it; their shares add up`, value), ...readers.flatMap((reader) => [element("h3", {}, nameOf(reader)), ...this.said(reader, false)])];
  }

  said(reader, only, what = null) {  // what one layer sends back to the chosen number
    const { node, unit } = this, [x, y, g] = [this.values[node.number], this.values[reader.number], this.adjoints[reader.number]];
    const words = element("p", {}, `${nameOf(reader)}: ${WORDS[reader.kind][1]}`);
    const end = (formula, number) => (only ? this.total(formula, this.adjoints[node.number][unit]) : element("p", { class: "sum" }, `${formula} = ${long(number)}`));
    if (reader.taps) return [what, words, ...this.windowsThatSaw(reader, x, y, g, end)];
    if (reader.kind === "loss") return [words, this.line("dL/dp = −1 / p for the true class, else 0"), end(unit === this.network.truth ? `−1 / ${long(x[unit])}` : "0", 0), this.to(reader, 0)];
    if (reader.kind === "softmax") {
      const mean = g.reduce((sum, v, i) => sum + v * y[i], 0);
      const note = this.target === "loss" ? `With the cross-entropy behind it this is probability − truth: ${long(y[unit])} − ${unit === this.network.truth ? 1 : 0}.` : "";
      return [words, this.line("x̄[o] = p[o] (ȳ[o] − sum over k of ȳ[k] p[k])"), end(`${long(y[unit])} · (${long(g[unit])} − ${long(mean)})`, y[unit] * (g[unit] - mean)), this.line(note, "note"), this.to(reader, unit)];
    }
    const slope = this.network.slope(reader, x[unit], y[unit]);
    const because = reader.kind === "relu" ? (slope ? `x = ${long(x[unit])} is positive: the adjoint passes.` : `x = ${long(x[unit])} is not positive: the adjoint stops here.`) : `The slope at x = ${long(x[unit])} is ${long(slope)}.`;
    return [words, this.line(because), end(`${long(g[unit])} · ${long(slope)}`, g[unit] * slope), this.to(reader, unit)];
  }

  to(node, unit) {
    return element("p", {}, "The adjoint of y comes from ", this.unitButton(node, unit, `${nameOf(node)}${place(node, unit) ? ", " : ""}${place(node, unit)}`));
  }

  windowsThatSaw(reader, x, y, g, end) {
    const maps = this.network.seenBy(reader, this.unit, x, y).map((map) => ({ ...map, cells: map.cells.map((cell) => ({ at: cell.unit, value: g[cell.unit], factor: cell.slope })) }));
    const count = maps.reduce((sum, map) => sum + map.cells.length, 0), sum = this.sums(maps);
    const formula = this.line(reader.weights ? "x̄ = sum over the windows that saw it of ȳ · weight" : "x̄ = sum over the windows that saw it of ȳ · share");
    if (!count) return [formula, end("no window saw it: the sum of nothing", 0)];
    const won = reader.kind === "max" ? maps[0].cells.filter((cell) => cell.factor).length : 0;
    const race = reader.kind === "max" ? [this.line(won ? `It is the winner of ${won === 1 && count === 1 ? "its window" : `${won} of ${count}`}: it receives the full adjoint.` : "Another pixel won: nothing comes back here.", "note")] : [];
    const rest = reader.kept && reader.kept < reader.maps ? [this.line(`The page holds the weights of maps 0 to ${reader.kept - 1}; what the other maps say is the rest of the adjoint.`, "note")] : [];
    const names = ["adjoints", reader.weights ? "weights" : "share"];
    return [formula, end(count === 1 ? "what one window says" : `the sum of what ${count} windows say`, sum), ...race, ...rest, ...this.detail(maps, reader, names, null)];
  }

  // ---- the terms of a sum

  sums(maps) {
    let total = 0;
    for (const map of maps) {
      map.sum = 0;
      for (const cell of map.cells) map.sum += cell.value * cell.factor;
      total += map.sum;
    }
    return total;
  }

  detail(maps, node, names, kernel) {
    const terms = maps.flatMap((map) => map.cells);
    if (maps.length > 1 && maps.every((map) => map.cells.length === 1)) return [this.terms(terms, node, names)];
    if (maps.length === 1) return [this.cellsOf(maps[0], node, names, kernel)];
    const key = `${this.way} ${this.node.number} ${node.number}`;
    const shown = maps.find((map) => map.map === this.open[key]) || maps.reduce((a, b) => (Math.abs(b.sum) > Math.abs(a.sum) ? b : a));
    return [
      element("h3", {}, `Map ${shown.map}: ${names[0]} × ${names[1]} = products`),
      this.cellsOf(shown, node, names, kernel),
      element("h3", {}, `All ${maps.length} maps`),
      this.mapsTable(maps, node, names, shown, (map) => { this.open[key] = map; this.show({}); this.root.querySelector("tr.chosen button")?.focus(); }),
    ];
  }

  mapsTable(maps, node, names, shown, open) {
    const rows = maps.length > MOST_MAPS ? [...maps].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, MOST_MAPS) : maps;
    const cells = rows.flatMap((map) => map.cells), scales = ["value", "factor"].map((key) => largest(cells.map((cell) => cell[key])));
    const products = largest(cells.map((cell) => cell.value * cell.factor));
    const table = element("table", { class: "list" }, element("tr", {}, element("th", {}, "map"), element("th", {}, names[0]), element("th", {}, names[1]), element("th", {}, "products"), element("th", {}, "sum")));
    for (const map of rows)
      table.append(element("tr", { class: map === shown ? "chosen" : "" }, element("td", {}, element("button", { type: "button", "aria-label": `show map ${map.map}`, onclick: () => open(map.map) }, String(map.map))),
        ...[["value", scales[0]], ["factor", scales[1]], [null, products]].map(([key, scale]) => element("td", {}, this.thumbnail(map.cells.map((cell) => (key ? cell[key] : cell.value * cell.factor)), map.cells, node, scale))),
        element("td", { class: "mapsum", "data-map": map.map }, long(map.sum))));
    if (rows.length < maps.length) {
      const rest = maps.filter((map) => !rows.includes(map));
      table.append(element("tr", {}, element("td", { colspan: 4 }, `the other ${rest.length} maps together`), element("td", {}, long(rest.reduce((sum, map) => sum + map.sum, 0)))));
    }
    return table;
  }

  columnsOf(cells, node, kernel) {  // how many cells stand in one row of their window
    if (kernel) return kernel[2];
    const width = node.shape[3];
    return new Set(cells.map((cell) => (node.points === 1 ? cell.at : cell.at % width))).size || 1;
  }

  thumbnail(values, cells, node, scale) {
    const columns = this.columnsOf(cells, node, this.way === "forward" ? this.node.kernel : null), rows = Math.ceil(values.length / columns);
    const canvas = painted(values, columns, rows, scale, false), zoom = Math.max(1, Math.floor(36 / Math.max(rows, columns)));
    [canvas.style.width, canvas.style.height] = [`${columns * zoom}px`, `${rows * zoom}px`];
    return canvas;
  }

  cellsOf(map, node, names, kernel) {
    const columns = this.columnsOf(map.cells, node, kernel);
    if (map.cells.length <= MOST_CELLS && columns <= 7) return this.grid(map.cells, node, kernel, columns);
    return element("div", {}, this.pictures(map, node, names, columns), this.terms(map.cells, node, names));
  }

  pictures(map, node, names, columns) {  // a large window: pixels, weights and products as pictures
    const rows = Math.ceil(map.cells.length / columns), zoom = Math.max(1, Math.min(12, Math.floor(130 / Math.max(rows, columns))));
    const table = element("table", { class: "list" }, element("tr", {}, ...[names[0], names[1], "products"].map((name) => element("th", {}, name)))), row = element("tr");
    for (const values of [map.cells.map((c) => c.value), map.cells.map((c) => c.factor), map.cells.map((c) => c.value * c.factor)]) {
      const canvas = painted(values, columns, rows, largest(values), false);
      [canvas.style.width, canvas.style.height] = [`${columns * zoom}px`, `${rows * zoom}px`];
      row.append(element("td", {}, canvas));
    }
    if (rows > 1) table.append(row);
    return rows > 1 ? table : element("span");
  }

  grid(cells, node, kernel, columns = kernel[2]) {  // one term per cell, in the order of the window
    const table = element("table", { class: columns > 5 ? "cells many" : "cells", style: `width: min(100%, ${columns * 88}px)` }), scale = largest(cells.map((cell) => cell.value * (cell.factor ?? 1)));
    for (let start = 0; start < cells.length; start += columns) {
      if (kernel?.[0] > 1 && start % (kernel[1] * kernel[2]) === 0) table.append(element("tr", {}, element("td", { colspan: columns, class: "outside" }, `slice ${start / (kernel[1] * kernel[2])} of the window`)));
      const row = element("tr");
      for (const cell of cells.slice(start, start + columns)) row.append(this.cell(cell, node, scale));
      table.append(row);
    }
    return table;
  }

  cell(cell, node, scale) {
    if (cell.at < 0) return element("td", { class: "outside" }, element("span", {}, "outside"));
    const product = cell.value * (cell.factor ?? 1), title = `${nameOf(node)}, ${place(node, cell.at)}`;
    const lines = cell.factor === undefined ? [short(cell.value)] : [short(cell.value), `× ${short(cell.factor)}`, `= ${short(product)}`];
    const button = element("button", { type: "button", title, style: tinted(product, scale), class: cell.winner ? "winner" : "", "data-unit": cell.at, onclick: () => this.choose(node.number, cell.at) },
      ...lines.map((words, i) => element("span", { class: i === lines.length - 1 ? "product" : "" }, words)), ...(cell.winner ? [element("span", {}, "winner")] : []));
    return element("td", {}, button);
  }

  terms(cells, node, names) {  // a long sum: its largest terms, and the rest in one
    const sorted = cells.filter((cell) => cell.at >= 0).sort((a, b) => Math.abs(b.value * b.factor) - Math.abs(a.value * a.factor)), shown = sorted.slice(0, sorted.length <= MOST_TERMS + 1 ? sorted.length : MOST_TERMS);
    const table = element("table", { class: "list" }, element("tr", {}, element("th", {}, "where"), element("th", {}, names[0]), element("th", {}, names[1]), element("th", {}, "product")));
    for (const cell of shown)
      table.append(element("tr", {}, element("td", {}, this.unitButton(node, cell.at, place(node, cell.at) || nameOf(node))), ...[cell.value, cell.factor, cell.value * cell.factor].map((v) => element("td", {}, short(v)))));
    const rest = sorted.slice(shown.length);
    if (rest.length) table.append(element("tr", {}, element("td", { colspan: 3 }, `the other ${rest.length} terms together`), element("td", {}, short(rest.reduce((sum, cell) => sum + cell.value * cell.factor, 0)))));
    return table;
  }
}
