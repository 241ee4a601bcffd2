"use strict";
// The three traces of a function, step by step: evaluation, forward derivative by one input, backward adjoints.

const { expression, variables, nodes } = JSON.parse(at("data").textContent);
const n = nodes.length, WIDTH = 150, HEIGHT = 78, ACROSS = 196, DOWN = 98;
const PHASES = ["evaluation", "forward derivative", "backward"];
const state = { step: null, by: 0, chosen: n - 1 };
const readers = nodes.map((node) => nodes.filter((other) => other.sources.includes(node.name)));

const RULES = {  // the local derivatives, by the sign of the operation
  "+": "y = a + b: dy/da = 1, dy/db = 1", "-": "y = a − b: dy/da = 1, dy/db = −1", "*": "y = a · b: dy/da = b, dy/db = a", "/": "y = a / b: dy/da = 1 / b, dy/db = −y / b",
  "**": "y = a ^ b: dy/da = b · a ^ (b − 1), dy/db = ln(a) · y", ln: "y = ln a: dy/da = 1 / a", exp: "y = exp a: dy/da = y", sin: "y = sin a: dy/da = cos a", cos: "y = cos a: dy/da = −sin a",
  tanh: "y = tanh a: dy/da = 1 − y²", sigmoid: "y = sigmoid a: dy/da = y (1 − y)", relu: "y = max(0, a): dy/da = 1 where a is positive, else 0",
  maximum: "y = max(a, b): the derivative by the larger is 1, by the smaller 0; on a tie each has half", "": "y = a: dy/da = 1",
};

function rule(node) {
  if (!node.sources.length) return "An input: its value is given.";
  return node.operation === "-" && node.formula.startsWith("-") ? "y = −a: dy/da = −1" : RULES[node.operation] || "";
}

const tidy = (formula) => formula.replace(/\*\*/g, "^").replace(/\*/g, "·").replace(/-/g, "−");

function inNumbers(formula) {  // the formula with the numbers of its nodes
  const numbers = formula.replace(/v([\u0307\u0304]?)(\d+)/g, (_, mark, k) => {
    const node = nodes[k], value = mark === "\u0307" ? node.tangents[state.by].value : mark === "\u0304" ? node.adjoint.value : node.value;
    return value < 0 ? `(${long(value)})` : long(value);
  });
  return tidy(numbers);
}

// Step k is: the evaluation of node k, then its tangent, then, from the last node to the first, its adjoint.
function at_(step) { return [Math.floor(step / n), step < 2 * n ? step % n : 3 * n - 1 - step]; }

function known(phase, k) {
  if (state.step === null) return true;
  const [now, node] = at_(state.step);
  return phase < now || (phase === now && (phase === 2 ? k >= node : k <= node));
}

// ---- what is said

function rulesOf(phase, k) {  // the rule of the operation; backward, those of the nodes that use the result
  if (phase !== 2) return [rule(nodes[k])];
  return readers[k].map((node) => `${node.name} = ${tidy(node.formula)}, so by the rule ${rule(node)}`);
}

function say() {
  const [phase, k] = state.step === null ? [null, state.chosen] : at_(state.step);
  const parts = [element("h2", {}, `${nodes[k].name}${nodes[k].sources.length ? ` = ${tidy(nodes[k].formula)}` : `, the input ${nodes[k].formula}`}`), ...rulesOf(phase, k).map((words) => element("p", {}, words))];
  for (const p of phase === null ? [0, 1, 2] : [phase]) parts.push(sentence(p, nodes[k]));
  if (state.step === null) parts.push(element("p", { class: "note" }, `Gradient: ${variables.map((name, i) => `dy/d${name} = ${long(nodes[i].adjoint.value)}`).join(", ")}.`));
  at("now").replaceChildren(...parts);
  at("step").textContent = state.step === null ? "" : `${PHASES[phase]}${phase === 1 ? ` by ${variables[state.by]}` : ""}, step ${state.step + 1} of ${3 * n}`;
}

function sentence(phase, node) {
  const line = (kind, name, formula, value, words) => element("p", { class: `formula ${kind}` }, formula && formula !== String(value) ? `${name} = ${tidy(formula)} = ${inNumbers(formula)} = ` : `${name} = `, element("b", {}, long(value)), words);
  if (phase === 0) return line("", node.name, node.sources.length ? node.formula : "", node.value, "");
  const [name, digits] = [node.name[0], node.name.slice(1)];
  if (phase === 1) {
    const { formula, value } = node.tangents[state.by];
    const words = !node.sources.length ? (value ? `: ${node.formula} is the input that moves` : `: ${node.formula} stands still`) : formula ? "" : ": nothing it is made of moves";
    return line("tangent", `${name}̇${digits}`, formula, value, words);
  }
  const { formula, value } = node.adjoint, used = readers[node.name.slice(1)];
  const words = node === nodes[n - 1] ? ": the backward pass starts at the output" : used.length > 1 ? `: ${used.length} nodes use it, and what they say adds up` : used.length ? "" : ": nothing uses it";
  return line("adjoint", `${name}̄${digits}`, node === nodes[n - 1] ? "" : formula, value, words);
}

// ---- the graph

const svg = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const highest = Math.max(...nodes.flatMap((node) => node.stops.map((stop) => stop[1])));
const where = ([column, row]) => [20 + column * ACROSS + WIDTH / 2, 14 + (highest - row) * DOWN + HEIGHT / 2];

function arrow(source, node, classes) {  // through the places kept free for it, so that none runs behind a box
  const stops = source.stops.filter((stop) => stop[0] < node.stops[0][0]).map(where), [x, y] = where(node.stops[0]);
  const points = [[stops[0][0] + WIDTH / 2, stops[0][1]], ...stops.slice(1).flatMap(([a, b]) => [[a - WIDTH / 2, b], [a + WIDTH / 2, b]]), [x - WIDTH / 2 - 6, y]];
  return svg("polyline", { points: points.map((point) => point.join(",")).join(" "), "marker-end": "url(#head)", class: classes });
}

function draw() {
  const [phase, k] = state.step === null ? [null, state.chosen] : at_(state.step);
  const columns = Math.max(...nodes.map((node) => node.stops[0][0])), lowest = Math.min(...nodes.flatMap((node) => node.stops.map((stop) => stop[1])));
  const picture = svg("svg", { width: 40 + columns * ACROSS + WIDTH, height: 28 + (highest - lowest) * DOWN + HEIGHT });
  picture.append(svg("defs", {}, svg("marker", { id: "head", viewBox: "0 0 10 10", refX: 4, refY: 5, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, svg("path", { d: "M0 0 L10 5 L0 10 z", fill: "#6b7280" }))));
  const from = phase === 2 || phase === null ? readers[k].map((node) => node.name) : [], into = phase === 2 ? [] : nodes[k].sources;
  for (const node of nodes)
    for (const source of new Set(node.sources)) {
      const flows = (node === nodes[k] && into.length) || (source === nodes[k].name && from.length);
      picture.append(arrow(nodes[source.slice(1)], node, flows && phase !== null ? "flow" : ""));
    }
  nodes.forEach((node, i) => picture.append(box(node, i, i === k ? "now" : phase !== null && (into.includes(node.name) || from.includes(node.name)) ? "used" : "")));
  at("graph").replaceChildren(picture);
}

function box(node, i, mark) {
  const [x, y] = where(node.stops[0]), sign = node.operation ? tidy(node.operation) : "same";
  const lines = [["name", `${node.name}  ${sign}`], ["", known(0, i) ? long(node.value) : ""], ["tangent", known(1, i) ? `tangent ${long(node.tangents[state.by].value)}` : ""], ["adjoint", known(2, i) ? `adjoint ${long(node.adjoint.value)}` : ""]];
  const made = svg("g", { class: `node ${node.sources.length ? "" : "input"} ${mark}`, "data-node": node.name, tabindex: 0, role: "button", "aria-label": `${node.name} ${sign}, choose` });
  made.append(svg("rect", { x: x - WIDTH / 2, y: y - HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: 8 }));
  lines.forEach(([kind, words], row) => made.append(svg("text", { x, y: y - HEIGHT / 2 + 17 + row * 18, class: kind }, words)));
  made.addEventListener("click", () => choose(i));
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(i);
    at("graph").querySelector(`[data-node=${node.name}]`).focus();
  });
  return made;
}

function choose(i) {
  state.chosen = i;
  stepper.go(state.step === null ? null : Math.floor(state.step / n) === 2 ? 3 * n - 1 - i : Math.floor(state.step / n) * n + i);
}

// ---- the table of the slides

function table() {
  const current = state.step === null ? state.chosen : at_(state.step)[1];
  const head = ["node", "evaluation", "value", `forward derivative by ${variables[state.by]}`, "tangent", "backward adjoint", "adjoint"];
  const made = element("table", {}, element("tr", {}, ...head.map((words, i) => element("th", { scope: "col", class: i && i % 2 === 0 ? "number" : "" }, words))));
  nodes.forEach((node, i) => {
    const tangent = node.tangents[state.by], cell = (phase, words, kind = "") => element("td", { class: kind }, known(phase, i) ? words : "");
    made.append(element("tr", { class: i === current ? "now" : "" }, element("td", {}, node.name), cell(0, tidy(node.formula)), cell(0, long(node.value), "number"), cell(1, tidy(tangent.formula), "tangent"), cell(1, long(tangent.value), "tangent number"), cell(2, tidy(node.adjoint.formula), "adjoint"), cell(2, long(node.adjoint.value), "adjoint number")));
  });
  at("traces").replaceChildren(made);
}

function show(step) {
  state.step = step;
  if (step !== null) state.chosen = at_(step)[1];
  say();
  draw();
  table();
}

at("expression").textContent = `${tidy(expression)}  at ${variables.map((name, i) => `${name} = ${long(nodes[i].value)}`).join(", ")}`;
document.title = `y = ${tidy(expression)}`;
variables.forEach((name, i) => at("by").append(element("option", { value: i }, name)));
at("by").addEventListener("change", () => { state.by = Number(at("by").value); show(state.step); });
const stepper = new Stepper(() => 3 * n, show);
stepper.go(null);
