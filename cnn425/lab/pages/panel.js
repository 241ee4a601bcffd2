"use strict";
// The chosen unit, in words and numbers: its window times its weights (forward), or what the windows that saw it say (backward).

const MOST_CELLS = 49, MOST_MAPS = 40, MOST_TERMS = 14, RATE = 0.01;

const WORDS = {  // what a layer does: forward, and backward
  image: ["Where everything starts.", "How the target changes with each number of the input."],
  conv: ["Every unit sees a window of the layer before, and all units of one map share one set of weights.", "Each input adds up the contributions of all windows that contain it."],
  local: ["Every unit sees a window of the layer before, with weights of its own.", "Each input adds up the contributions of all windows that contain it."],
  shared: ["Every unit sees a window of the layer before, and some positions of a map share one set of weights.", "Each input adds up the contributions of all windows that contain it."],
  mixed: ["Every unit sees a window of the layer before, with weights that are a mixture of a few convolutions'.", "Each input adds up the contributions of all windows that contain it."],
  linear: ["Every unit sees everything: its window is the whole layer before.", "Every unit saw each number, so its adjoint is the sum over all units of adjoint × weight."],
  max: ["A window is reduced to its largest number.", "The adjoint of a window goes to its winner: a max pool routes."],
  average: ["A window is reduced to its mean.", "The adjoint of a window is spread evenly: an average pool shares."],
  lp: ["A window is reduced to its p-norm.", "The adjoint of a window is shared by size."],
  relu: ["Negative values become 0.", "The adjoint passes where the number was positive, and stops elsewhere."],
  sigmoid: ["Every number is squashed between 0 and 1.", "The adjoint is multiplied with y (1 − y)."],
  tanh: ["Every number is squashed between −1 and 1.", "The adjoint is multiplied with 1 − y²."],
  softmax: ["Scores become probabilities: positive and summing to 1.", "Each score changes all the probabilities, since they sum to 1: a score's adjoint is a sum over all of them."],
  loss: ["The cross-entropy: −ln of the probability of the true class, in nats.", "The derivative of −ln p is −1 / p for the probability p of the true class, and 0 for the others."],
  stored: ["Its numbers come from torch and cannot be followed inside.", "What it sends back comes from torch."],
};

const nameOf = (node) => node.title;
const sharing = (node) => (node.sets ? "shared" : node.rank ? "mixed" : node.kind);  // which positions have weights in common
const bracketed = (v) => (v < 0 ? `(${long(v)})` : long(v));  // behind an operator

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
  constructor(root, network, choose, closed, changed) {
    [this.root, this.network, this.choose, this.closed, this.changed] = [root, network, choose, closed, changed];
    [this.open, this.weight] = [{}, {}];  // by layer: which map of a window is shown in full; which weight is chosen, -1: the bias
    this.ofWeights = false;  // backward: the gradients of the weights instead of the unit's adjoint
  }

  show(state) {
    Object.assign(this, state);  // node, unit, way, values, adjoints, target, back, step
    this.used = null;  // the units that use the chosen weight, and the pixels it meets
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

  again(focus) {  // after a choice in the panel
    this.show({});
    this.changed();
    this.root.querySelector(focus)?.focus();
  }

  unitButton(node, unit, words) {
    return element("button", { type: "button", onclick: () => this.choose(node.number, unit) }, words);
  }

  // ---- forward

  forward() {
    const { node, unit, source } = this, value = this.values[node.number][unit], x = source && this.values[source.number];
    const what = element("p", {}, WORDS[sharing(node)][0]);
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
    if (!window) return [formula, this.line(`${this.missing()} The number itself comes from torch.`, "note"), this.total("y", value)];
    const maps = window.map((w) => ({ ...w, cells: w.cells.map((cell) => ({ ...cell, at: cell.pixel, value: cell.pixel < 0 ? 0 : x[cell.pixel], factor: cell.weight })) }));
    const bias = this.network.biasAt(node, Math.floor(unit / node.P), unit % node.P);
    const sum = this.sums(maps);
    const note = { conv: "Move to another position in this map: the weights stay the same.", local: "Move to another position in this map: the weights change, since every position has its own.", shared: "Move to another position in this map: the weights change where it belongs to another set.", mixed: "Move to another position in this map: the weights change, since every position has a mixture of its own.", linear: "Every unit has a weight of its own for every number of the layer before." }[sharing(node)];
    return [formula, this.total(`sum ${long(sum)} + bias ${bracketed(bias)}`, value), this.follower(value), this.line(note, "note"), ...this.detail(maps, this.source, { value: "pixels", factor: "weights", product: "products" }, node.kernel)];
  }

  missing() { return `The weights of this map are left out, or the page would be too large: it holds those of maps 0 to ${this.node.kept - 1}.`; }

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
    const cells = window.cells.map((cell) => ({ at: cell.pixel, product: cell.pixel < 0 ? 0 : x[cell.pixel], mark: cell.pixel === winner && winner >= 0 && "winner" }));
    const sum = cells.reduce((total, cell) => total + cell.product, 0), divisor = node.divisors ? node.divisors[unit % node.P] : 0;
    const [c, i, u] = this.letters(), over = `over ${u.replaceAll(",", ", ")} of windows[${c},${i},${u}]`;
    const lines = {
      max: () => [this.line(`y[${c},${i}] = max ${over}`), this.total("the largest", value)],
      average: () => [this.line(`y[${c},${i}] = mean ${over}`), this.total(`sum ${long(sum)} / ${divisor}`, value)],
      lp: () => [this.line(`y[${c},${i}] = (sum ${over}^${node.norm})^(1/${node.norm})`), this.total("y", value)],
    }[node.kind]();
    return [...lines, this.grid(cells, this.source, { product: "pixels" }, node.kernel[2], node.kernel), node.kind === "max" ? this.line("The winner is outlined; on a tie the first in reading order wins.", "note") : null];
  }

  softmax(x, value) {
    const most = Math.max(...x), sum = x.reduce((total, v) => total + Math.exp(v - most), 0);
    return [this.line("p[o] = exp(x[o]) / sum over k of exp(x[k])"), this.line("The largest score is subtracted from every score first, which changes nothing and keeps the numbers small.", "note"), this.total(`exp(${long(x[this.unit] - most)}) / ${long(sum)}`, value), this.from(this.source, this.unit),
      this.terms([...x].map((v, at) => ({ at, product: Math.exp(v - most) })), this.source, { product: "exp(x[k] − largest)" })];
  }

  // ---- backward

  backward() {
    if (!this.node.weights || !this.adjoints[this.node.number]) return this.adjoint();
    const button = (words, of) => element("button", { type: "button", "aria-pressed": String(this.ofWeights === of), onclick: () => { this.ofWeights = of; this.again(".parts [aria-pressed=true]"); } }, words);
    return [element("p", { class: "parts" }, button("adjoint of this unit", false), " ", button("gradients of its weights", true)), ...(this.ofWeights ? this.gradients() : this.adjoint())];
  }

  gradients() {  // choose a weight of the window, or the bias: its gradient, and the sum that it is
    const { node, unit, source } = this, window = this.network.window(node, unit), [x, g] = [this.values[source.number], this.adjoints[node.number]];
    if (!window) return [this.line(this.missing(), "note")];
    const all = this.network.gradients(node, unit, x, g), larger = (a, b) => (Math.abs(b.product) > Math.abs(a.product) ? b : a);
    const maps = window.map(({ map, cells }, c) => ({ map, cells: cells.map(({ pixel, weight }, k) => ({ at: c * node.K + k, value: weight, product: all[c * node.K + k], where: this.whereIn(map, k, pixel) })) }));
    for (const map of maps) map.sum = map.cells.reduce(larger).product;
    const at = this.weight[node.number] ?? this.shown(maps, source).cells.reduce(larger).at;
    const chosen = at < 0 ? { value: this.network.biasAt(node, Math.floor(unit / node.P), unit % node.P), at } : maps.flatMap((map) => map.cells)[at];
    chosen.mark = "chosen";
    const pick = (cell) => {
      this.weight[node.number] = cell.at;
      if (cell.at >= 0) this.open[`${node.number} ${source.number}`] = maps[Math.floor(cell.at / node.K)].map;
      this.again(".winner");
    };
    const [title, grid, ...rest] = this.detail(maps, source, { value: "weights", product: "gradients" }, node.kernel, pick);
    const parts = grid.tagName === "DIV" ? [...grid.children] : [grid], list = parts.at(-1).matches(".list:not(.pictures)") ? parts.pop() : null;
    const bias = node.biases ? element("button", { type: "button", class: at < 0 ? "winner" : "", id: "bias", onclick: () => pick({ at: -1 }) }, "the bias") : null;
    const note = { conv: `One set of weights serves all ${node.P} positions of the map: the gradient of a weight adds up adjoint × pixel over all of them.`, local: "Every position has weights of its own: the gradient of a weight is one product, adjoint × pixel.", shared: `${this.network.positions(node, unit).length} positions share this set of weights: the gradient of a weight adds up adjoint × pixel over them.`, mixed: "Every position has a mixture of its own: the gradient of a mixed weight is one product, adjoint × pixel.", linear: "The gradient of a weight is one product: the adjoint of its unit × the number it is multiplied with." }[sharing(node)];
    return [this.line(`${note} Choose a weight.`, "note"), title, ...parts, bias, ...this.gradient(chosen, window, x, g), list, ...rest];
  }

  gradient({ at, value, where }, window, x, g) {  // of one weight: the sum of adjoint · pixel over the positions that use it; at −1 the bias, the weight of a 1
    const { node, unit } = this, { P, K } = node, bias = at < 0, c = Math.floor(at / K), k = at % K, first = unit - (unit % P);
    const positions = bias && node.biases.length === node.maps ? [...Array(P).keys()] : this.network.positions(node, unit), many = positions.length > 1;
    const pixels = positions.map((p) => (bias || node.taps[p * K + k] < 0 ? -1 : window[c].map * node.stride + node.taps[p * K + k]));
    const terms = positions.map((p, n) => ({ at: first + p, value: g[first + p], factor: bias ? 1 : x[pixels[n]] ?? 0 })), sum = this.sums([{ cells: terms }]);
    this.used = { units: terms.map((term) => term.at), pixels: pixels.filter((pixel) => pixel >= 0) };
    const [o, i, u] = this.letters(), j = ["i", "j", "k"].slice(0, u.split(",").length), p = many ? j.join(",") : i, linear = node.kind === "linear", w = bias ? "b" : "w";
    const name = bias ? `${o}${many || linear ? "" : `,${i}`}` : { conv: `${o},${c},${this.cellAt(k)}`, local: `${i},${o},${c},${this.cellAt(k)}`, linear: `${o},${at}` }[node.kind];
    const product = `ȳ[${linear ? o : `${o},${p}`}] · ${bias ? 1 : linear ? `x[${at}]` : `windows[${window[c].map},${p},${this.cellAt(k)}]`}`;
    return [
      element("h3", {}, bias ? "The gradient of the bias" : `The gradient of the weight at ${where}${linear ? "" : " of the window"}`),
      this.line(`${w}̄[${name}] = ${many ? `sum over ${j.join(", ")} of ` : ""}${product}`),
      this.total(many ? `the sum over ${terms.length} positions` : `${long(terms[0].value)} · ${bracketed(terms[0].factor)}`, sum),
      ...(this.target === "loss" ? [this.line(`${w} − ${RATE} · ${w}̄ = ${long(value)} − ${RATE} · ${bracketed(sum)} = ${long(value - RATE * sum)}`, "formula step"), this.line(`One step of gradient descent on this image alone, with learning rate ${RATE}: the loss falls a little.`, "note")]
        : [this.line("Choose the loss as the target to see the step of gradient descent.", "note")]),
      many ? this.cellsOf({ cells: terms }, node, { value: "adjoints", factor: bias ? "ones" : "pixels", product: "products" }, node.shape.slice(1)) : null,
    ];
  }

  cellAt(k) {  // the cell of a window, as the letters u, v count it
    const [, b, c] = this.node.kernel;
    return [Math.floor(k / (b * c)), Math.floor(k / c) % b, k % c].slice(-this.letters()[2].split(",").length).join(",");
  }

  whereIn(map, k, pixel) {  // a cell of a window, in words
    if (this.node.kind === "linear") return place(this.source, pixel);
    const cell = this.cellAt(k).split(",").map((at, i, all) => `${["slice", "row", "column"].slice(-all.length)[i]} ${at}`);
    return (this.source.maps > 1 ? [`map ${map}`, ...cell] : cell).join(", ");
  }

  adjoint() {
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
    if (reader.kind === "loss") return [words, end(unit === this.network.truth ? `−1 / ${long(x[unit])}` : "not the true class", 0), this.to(reader, 0)];
    if (reader.kind === "softmax") {
      const mean = g.reduce((sum, v, i) => sum + v * y[i], 0), t = this.network.truth, k = unit;
      const sum = [this.line(`x̄[${k}] = p[${k}] (ȳ[${k}] − sum over j of ȳ[j] p[j])`), end(`${long(y[k])} · (${long(g[k])} − ${bracketed(mean)})`, y[k] * (g[k] - mean))];
      const loss = [this.line(`The cross-entropy sends ȳ = −1 / p[${t}] to the true class, ${t}, and 0 to the others. So the sum is −1, and ${k === t ? `x̄[${k}] = p[${k}] (−1 / p[${k}] + 1) = p[${k}] − 1: probability minus 1 for the true class` : `x̄[${k}] = p[${k}] (0 + 1) = p[${k}]: the probability itself, for a wrong class`}.`, "note"),
        element("p", { class: "sum" }, `p[${k}] − ${k === t ? 1 : 0} = ${long(y[k])} − ${k === t ? 1 : 0} = ${long(y[k] - (k === t ? 1 : 0))}`)];
      const cells = [...g].map((value, at) => ({ at, value, factor: y[at] }));
      this.sums([{ cells }]);
      return [words, ...sum, ...(this.target === "loss" ? loss : []), this.terms(cells, reader, { value: "adjoints", factor: "probabilities", product: "products" })];
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
    const linear = reader.kind === "linear";
    const formula = this.line(linear ? `x̄[${this.unit}] = sum over o of ȳ[o] · w[o,${this.unit}]` : `x̄ = sum over the windows that saw it of ȳ · ${reader.weights ? "weight" : "share"}`);
    if (!count) return [formula, end("no window saw it: the sum of nothing", 0)];
    const won = reader.kind === "max" ? maps[0].cells.filter((cell) => cell.factor).length : 0;
    const race = reader.kind === "max" ? [this.line(won ? `It is the winner of ${won === 1 && count === 1 ? "its window" : `${won} of ${count}`}: it receives the full adjoint.` : "Another pixel won: nothing comes back here.", "note")] : [];
    const rest = reader.kept && reader.kept < reader.maps ? [this.line(`The page holds the weights of maps 0 to ${reader.kept - 1}; what the other maps say is the rest of the adjoint.`, "note")] : [];
    const names = { value: "adjoints", factor: reader.weights ? "weights" : "share", product: "products" };
    return [formula, end(linear ? `the sum over all ${count} units` : count === 1 ? "what one window says" : `the sum of what ${count} windows say`, sum), ...race, ...rest, ...this.detail(maps, reader, names, null)];
  }

  // ---- the terms of a sum

  sums(maps) {
    let total = 0;
    for (const map of maps) {
      map.sum = 0;
      for (const cell of map.cells) map.sum += cell.product = cell.value * cell.factor;
      total += map.sum;
    }
    return total;
  }

  shown(maps, node) {  // the map that is shown in full
    return maps.find((map) => map.map === this.open[`${this.node.number} ${node.number}`]) || maps.reduce((a, b) => (Math.abs(b.sum) > Math.abs(a.sum) ? b : a));
  }

  // `names`: what the cells hold, and what it is called: a value, its factor, their product; `pick(cell)`: what choosing a cell does
  detail(maps, node, names, kernel, pick = (cell) => this.choose(node.number, cell.at)) {
    const terms = maps.flatMap((map) => map.cells);
    if (maps.length > 1 && maps.every((map) => map.cells.length === 1)) return ["", this.terms(terms, node, names, pick)];
    if (maps.length === 1) return ["", this.cellsOf(maps[0], node, names, kernel, pick)];
    const shown = this.shown(maps, node);
    return [
      element("h3", {}, `Map ${shown.map}`),
      this.cellsOf(shown, node, names, kernel, pick),
      element("h3", {}, `All ${maps.length} maps`),
      this.mapsTable(maps, node, names, shown, (map) => { this.open[`${this.node.number} ${node.number}`] = map; delete this.weight[this.node.number]; this.again("tr.chosen button"); }),
    ];
  }

  header(names, ...more) { return element("tr", {}, ...[...more.slice(0, 1), ...Object.values(names), ...more.slice(1)].map((name) => element("th", {}, name))); }

  mapsTable(maps, node, names, shown, open) {
    const rows = maps.length > MOST_MAPS ? [...maps].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, MOST_MAPS) : maps;
    const cells = rows.flatMap((map) => map.cells), pictures = Object.keys(names).map((key) => this.thumbnails(rows, key, node, largest(cells.map((cell) => cell[key]))));
    const table = element("table", { class: "list" }, this.header(names, "map", names.factor ? "sum" : "largest"));
    rows.forEach((map, i) =>
      table.append(element("tr", { class: map === shown ? "chosen" : "" }, element("td", {}, element("button", { type: "button", "aria-label": `show map ${map.map}`, onclick: () => open(map.map) }, String(map.map))),
        ...pictures.map((column) => element("td", {}, column[i])),
        element("td", { class: "mapsum", "data-map": map.map }, long(map.sum)))));
    if (rows.length < maps.length) {
      const rest = maps.filter((map) => !rows.includes(map));
      table.append(element("tr", {}, element("td", { colspan: pictures.length + 1 }, `the other ${rest.length} maps${names.factor ? " together" : ": at most"}`), element("td", {}, long(names.factor ? rest.reduce((sum, map) => sum + map.sum, 0) : Math.abs(rest[0].sum)))));
    }
    return table;
  }

  columnsOf(cells, node, kernel) {  // how many cells stand in one row of their window
    if (kernel) return kernel[2];
    const width = node.shape[3];
    return new Set(cells.map((cell) => (node.points === 1 ? cell.at : cell.at % width))).size || 1;
  }

  thumbnails(maps, key, node, scale, side = 36) {  // one per map: parts of a single picture, since a canvas for each would take longer than all the rest
    const { cells } = maps[0], columns = this.columnsOf(cells, node, node === this.source ? this.node.kernel : null), rows = Math.ceil(cells.length / columns);
    const padding = Array(rows * columns - cells.length).fill(0), values = maps.flatMap((map) => [...map.cells.map((cell) => cell[key]), ...padding]);
    const picture = painted(values, columns, rows * maps.length, scale, false).toDataURL(), zoom = Math.max(1, Math.min(12, Math.floor(side / Math.max(rows, columns))));
    return maps.map((_, i) => element("span", { class: "thumbnail", style: `width: ${columns * zoom}px; height: ${rows * zoom}px; background: url(${picture}) 0 ${-i * rows * zoom}px / 100% ${100 * maps.length}%` }));
  }

  cellsOf(map, node, names, kernel, pick) {
    const columns = this.columnsOf(map.cells, node, kernel);
    if (map.cells.length <= MOST_CELLS && columns <= 7) return this.grid(map.cells, node, names, columns, kernel, pick);
    return element("div", {}, map.cells.length > columns ? this.pictures(map, node, names, columns, pick) : "", this.terms(map.cells, node, names, pick));
  }

  pictures({ cells }, node, names, columns, pick = (cell) => this.choose(node.number, cell.at)) {  // a large window: what its cells hold as pictures, in which a click chooses
    const rows = Math.ceil(cells.length / columns), side = Math.min(130, (this.root.clientWidth || innerWidth) / 3 - 24), zoom = Math.max(1, Math.min(12, Math.floor(side / Math.max(rows, columns)))), row = element("tr");
    for (const key of Object.keys(names)) {
      const values = cells.map((cell) => cell[key]), canvas = painted(values, columns, rows, largest(values), false);
      [canvas.style.width, canvas.style.height] = [`${columns * zoom}px`, `${rows * zoom}px`];
      canvas.addEventListener("click", (event) => pick(cells[Math.floor(event.offsetY / zoom) * columns + Math.floor(event.offsetX / zoom)] || cells[0]));
      row.append(element("td", {}, canvas));
    }
    return element("table", { class: "list pictures" }, this.header(names), row);
  }

  grid(cells, node, names, columns, kernel, pick) {  // one term per cell, in the order of the window
    const many = (this.root.clientWidth || innerWidth) / columns < 80, scale = largest(cells.map((cell) => cell.product));
    const legend = Object.values(names).join(names.factor ? " × " : ", ").replace(" × products", " = products").replace(/s\b/g, "");
    const table = element("table", { class: many ? "cells many" : "cells", style: `width: min(100%, ${columns * 88}px)` }, element("caption", {}, `in each cell: ${legend}`));
    for (let start = 0; start < cells.length; start += columns) {
      if (kernel?.[0] > 1 && start % (kernel[1] * kernel[2]) === 0) table.append(element("tr", {}, element("td", { colspan: columns, class: "outside" }, `slice ${start / (kernel[1] * kernel[2])} of the window`)));
      const row = element("tr");
      for (const cell of cells.slice(start, start + columns)) row.append(this.cell(cell, node, names, scale, many, pick));
      table.append(row);
    }
    return table;
  }

  cell(cell, node, names, scale, many, pick = () => this.choose(node.number, cell.at)) {  // many in a row: two digits and no signs; all digits are in the title
    if (cell.at < 0) return element("td", { class: "outside" }, element("span", {}, many ? "out" : "outside"));
    const keys = Object.keys(names), sign = (key) => (names.factor && key !== "value" ? { factor: "× ", product: "= " }[key] : "");
    const title = `${cell.where ?? `${nameOf(node)}, ${place(node, cell.at)}`}: ${keys.map((key) => sign(key) + long(cell[key])).join(names.factor ? " " : ", ")}`;
    const button = element("button", { type: "button", title, style: tinted(cell.product, scale), class: cell.mark ? "winner" : "", "data-unit": cell.at, onclick: () => pick(cell) },
      ...keys.map((key) => element("span", { class: key === "product" ? "product" : "" }, many ? short(cell[key], 2) : sign(key) + short(cell[key]))), ...(cell.mark ? [element("span", {}, cell.mark)] : []));
    return element("td", {}, button);
  }

  terms(cells, node, names, pick = (cell) => this.choose(node.number, cell.at)) {  // a long sum: its largest terms, and the rest in one
    const sorted = cells.filter((cell) => cell.at >= 0).sort((a, b) => Math.abs(b.product) - Math.abs(a.product)), shown = sorted.slice(0, sorted.length <= MOST_TERMS + 1 ? sorted.length : MOST_TERMS);
    const table = element("table", { class: "list" }, this.header(names, "where")), keys = Object.keys(names);
    for (const cell of shown) {
      const button = element("button", { type: "button", class: cell.mark ? "winner" : "", onclick: () => pick(cell) }, cell.where ?? (place(node, cell.at) || nameOf(node)));
      table.append(element("tr", {}, element("td", {}, button), ...keys.map((key) => element("td", {}, short(cell[key])))));
    }
    const rest = sorted.slice(shown.length), sum = names.factor || !names.value;
    if (rest.length) table.append(element("tr", {}, element("td", { colspan: keys.length }, `the other ${rest.length} ${sum ? "terms together" : "are smaller"}`), element("td", {}, sum ? short(rest.reduce((total, cell) => total + cell.product, 0)) : "")));
    return table;
  }
}
