"use strict";
// What is chosen and what is shown: the image, the way (forward or backward), the target, the unit, the step; and drawing.

const data = JSON.parse(document.getElementById("data").textContent);
const network = new Network(data);
const WINDOW = "#b0005e", UNIT = "#111";

const state = { image: 0, way: "forward", target: "loss", node: -1, unit: -1, step: null, chosen: {}, history: [], drawing: null };
const rows = [];
const panel = new Panel(at("panel"), network, (node, unit) => follow(node, unit), () => { state.closed = true; }, marks);

function image() { return state.drawing || network.slice(network.nodes[0].values[state.image]); }

function compute() {
  network.truth = at("truth").value === "" ? null : Number(at("truth").value);
  state.values = network.forward(image(), (node) => network.slice(node.values[state.image]));
  state.adjoints = network.backward(state.values, state.target, (node, c) => network.slice(node.adjoints[state.image][c]));
}

function predicted() {
  const scores = state.values[network.scores];
  return scores.indexOf(scores.reduce((a, b) => Math.max(a, b)));
}

// ---- what is shown

function order() {  // the steps: every layer forward, then every layer that the target depends on, backward
  const forward = network.nodes.map((node) => ["forward", node.number]);
  const backward = network.nodes.filter((node) => state.adjoints[node.number]).map((node) => ["backward", node.number]).reverse();
  return [...forward, ...backward];
}

function visible(number) {
  if (state.step === null) return true;
  const [way, current] = order()[state.step];
  return way === "forward" ? number <= current : number >= current;
}

function refresh() {
  rows.forEach((row, number) => {
    const numbers = (state.way === "forward" ? state.values : state.adjoints)[number];
    const grey = number === 0 && state.way === "forward" && numbers.every((v) => v >= 0);
    row.show(visible(number) ? numbers : null, grey);
    row.words.textContent = caption(row.node);
    row.section.classList.toggle("current", state.step !== null && order()[state.step][1] === number);
  });
  const steps = order();
  at("step").textContent = state.step === null ? "" : `${steps[state.step][0]}, step ${state.step + 1} of ${steps.length}: ${nameOf(network.nodes[steps[state.step][1]])}`;
  for (const radio of document.getElementsByName("way")) radio.checked = radio.value === state.way;
  at("of").hidden = state.way === "forward";
  at("answer").textContent = answer();
}

function caption(node) {  // forward what the layer does; backward what the layers that read it send back
  if (state.way === "forward") return node.kind === "stored" ? `${node.name ? node.layer : "A step"}: ${node.why}. ${WORDS.stored[0]}` : WORDS[sharing(node)][0];
  if (!state.adjoints[node.number]) return "Comes after the target.";
  const readers = node.readers.filter((reader) => state.adjoints[reader.number]);
  if (!readers.length) return "The backward pass starts here, with 1.";
  return `From the ${nameOf(readers[0])}${readers.length > 1 ? ` and ${readers.length - 1} more` : ""}: ${WORDS[readers[0].kind][1]}`;
}

function answer() {
  if (network.scores === network.nodes.length - 1) return "";
  const p = state.values[network.scores + (network.nodes[network.scores].kind === "softmax" ? 0 : 1)];
  const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, Math.min(3, p.length));
  if (state.drawing?.every((v) => v === 0)) return "Draw a digit first.";
  const label = state.drawing ? null : data.images[state.image].label, name = state.drawing ? "" : data.images[state.image].name;
  const words = `${name ? `${name}: t` : "T"}he network says ${best.map((c) => `${data.classes[c]} (${(100 * p[c]).toFixed(1)} %)`).join(", ")}.`;
  return words + (label === null ? "" : ` It is ${data.classes[label]}.`) + ` Loss if the true class is ${data.classes[network.truth]}${at("truth").value ? "" : ", as it says"}: ${long(state.values[network.nodes.length - 1][0])} nats.`;
}

function marks() {
  const found = rows.map(() => []);
  const node = network.nodes[state.node];
  if (node && visible(state.node)) {
    found[state.node].push({ units: [state.unit], colour: UNIT, strong: true });
    if (state.way === "forward") markWindow(node, found);
    else if (panel.used) {
      found[state.node].unshift({ units: panel.used.units, colour: WINDOW });
      found[node.source].push({ units: panel.used.pixels, colour: WINDOW });
    }
    else for (const reader of node.readers) if (state.adjoints[reader.number] && visible(reader.number)) markReaders(node, reader, found);
  }
  rows.forEach((row, number) => row.mark(found[number]));
}

function markWindow(node, found) {
  if (node.source < 0 || node.kind === "stored") return;
  if (!node.taps) { found[node.source].push({ units: node.kind === "softmax" ? [...Array(node.size).keys()] : [node.kind === "loss" ? network.truth : state.unit], colour: WINDOW }); return; }
  const p = state.unit % node.P, o = Math.floor(state.unit / node.P), first = node.weights ? Math.floor(o / node.perGroup) * node.inputs : o;
  const taps = [...node.taps.subarray(p * node.K, (p + 1) * node.K)].filter((tap) => tap >= 0);
  const units = Array.from({ length: node.inputs }, (_, c) => taps.map((tap) => (first + c) * node.stride + tap)).flat();
  found[node.source].push({ units, colour: WINDOW });
  if (node.kind === "max") found[node.source].push({ units: [o * node.stride + node.winners[state.unit]], colour: UNIT, strong: true });
}

function markReaders(node, reader, found) {
  if (reader.kind === "stored") return;
  const units = reader.taps ? network.seenBy(reader, state.unit, state.values[node.number], state.values[reader.number]).flatMap((map) => map.cells.map((cell) => cell.unit)) : reader.kind === "softmax" ? [...Array(reader.size).keys()] : [reader.kind === "loss" ? 0 : state.unit];
  found[reader.number].push({ units, colour: WINDOW });
}

function explain() {
  if (state.node < 0 || state.closed) { marks(); return; }
  const back = state.history.length ? () => { const [n, u] = state.history.pop(); select(n, u); at("panel").focus(); } : null;
  panel.show({ node: network.nodes[state.node], unit: state.unit, way: state.way, values: state.values, adjoints: state.adjoints, target: state.target, back, step: state.step === null ? null : (by) => stepper.by(by) });
  marks();
  const words = `${nameOf(network.nodes[state.node])} ${place(network.nodes[state.node], state.unit)}`;
  rows[state.node].canvas.setAttribute("aria-label", `${rows[state.node].name}. Chosen: ${words}, ${state.way === "forward" ? "value" : "adjoint"} ${long((state.way === "forward" ? state.values : state.adjoints)[state.node]?.[state.unit] ?? 0)}`);
}

function select(node, unit) {
  state.closed = false;
  if (node !== state.node) at("panel").scrollTop = 0;
  [state.node, state.unit] = [node, unit];
  state.chosen[node] = unit;
  explain();
}

function follow(node, unit) {  // from the panel: remember where we were
  state.history.push([state.node, state.unit]);
  select(node, unit);
  rows[node].section.scrollIntoView({ block: "nearest" });
  at("panel").focus({ preventScroll: true });
}

function update() {  // after another image, target, true class or stroke
  compute();
  if (state.step !== null && state.step >= order().length) stepper.go(order().length - 1);
  refresh();
  explain();
}

// ---- steps

function step(to) {
  state.step = to;
  if (to !== null) {
    const [way, number] = order()[to];
    state.way = way;
    refresh();
    select(number, state.chosen[number] ?? strongest((way === "forward" ? state.values : state.adjoints)[number]));
    rows[number].section.scrollIntoView({ block: "nearest" });
  } else {
    refresh();
    explain();
  }
}
const stepper = new Stepper(() => order().length, step, () => (state.way === "forward" ? 0 : network.nodes.length));  // from the view that is shown

function strongest(numbers) {  // forward the unit that answers most, backward the number that matters most
  const size = state.way === "forward" ? (v) => v : Math.abs;
  let best = 0;
  for (let i = 1; i < numbers.length; i++) if (size(numbers[i]) > size(numbers[best])) best = i;
  return best;
}

// ---- the page

function layerRow(node) {
  const canvas = element("canvas", { tabindex: 0, role: "application" });
  const labels = node.number >= network.scores && node.maps === data.classes.length && node.points === 1 ? data.classes : null;
  const row = new Row(node, canvas, labels);
  const [, depth, height, width] = node.shape;
  const size = node.points === 1 ? `${node.maps} ${node.maps === 1 ? "number" : "numbers"}` : `${node.maps === 1 ? "1 map" : `${node.maps} maps`} of ${[depth, height, width].filter((n, i) => i === 2 || n > 1).join("×")}`;
  row.name = `${nameOf(node)}, ${size}`;
  row.words = element("p");
  const code = node.name ? [`in the code: ${node.name}, ${node.layer}`] : [];
  const about = [...(node.window ? [node.window] : []), size, ...(node.parameters && !node.kept ? [`${node.parameters.toLocaleString("en")} parameters`] : []), ...code].join(" · ");
  row.section = element("section", { class: "layer", "aria-label": row.name }, element("h2", {}, nameOf(node), " ", element("small", {}, about)), row.words);
  if (node.kind === "stored") row.words.classList.add("unknown");
  row.section.append(canvas);
  canvas.setAttribute("aria-label", row.name);
  canvas.addEventListener("pointerdown", (event) => pick(row, event));
  canvas.addEventListener("pointermove", (event) => { if (event.buttons && event.pointerType === "mouse") pick(row, event); });
  canvas.addEventListener("keydown", (event) => moveUnit(row, event));
  canvas.addEventListener("focus", () => { if (state.node !== node.number) { state.history = []; select(node.number, state.chosen[node.number] ?? strongest((state.way === "forward" ? state.values : state.adjoints)[node.number] || [0])); } });
  return row;
}

function pick(row, event) {
  const unit = row.hit(event.offsetX, event.offsetY);
  if (unit < 0) return;
  state.history = [];
  select(row.node.number, unit);
}

function moveUnit(row, event) {
  const [, depth, height, width] = row.node.shape, area = height * width, unit = state.chosen[row.node.number] ?? 0, tile = Math.floor(unit / area);
  let [h, w, t] = [Math.floor(unit / width) % height, unit % width, tile];
  const by = { ArrowLeft: [0, -1, 0], ArrowRight: [0, 1, 0], ArrowUp: [-1, 0, 0], ArrowDown: [1, 0, 0], PageUp: [0, 0, -1], PageDown: [0, 0, 1] }[event.key];
  if (event.key === "Escape") { at("next").focus(); return; }
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  if (row.vector) t += by[1] + by[2] + by[0] * row.columns;
  else [h, w, t] = [h + by[0], w + by[1], t + by[2]];
  if (h < 0 || w < 0 || h >= height || w >= width || t < 0 || t >= row.tiles) return;
  state.history = [];
  select(row.node.number, (t * height + h) * width + w);
}

function thumbnails() {
  data.images.forEach((entry, k) => {
    const pixels = network.slice(network.nodes[0].values[k]), [, depth, height, width] = network.nodes[0].shape;
    const canvas = painted(pixels.subarray(0, depth * height * width), width, depth * height, largest(pixels), pixels.every((v) => v >= 0));
    const wrong = entry.label !== null && entry.predicted !== entry.label;
    const [label, said] = [data.classes[entry.label], data.classes[entry.predicted]];
    const words = entry.label === null ? entry.name || `image ${k}` : wrong ? `${label} ✗` : `${label} ✓`;
    const title = entry.label === null ? `${words}, read as ${said}` : wrong ? `${label}, read wrong, as ${said}` : `${label}, read right`;
    const button = element("button", { type: "button", "aria-pressed": "false", "aria-label": title, title }, canvas, element("span", { class: wrong ? "wrong" : "" }, words), wrong ? element("span", { class: "wrong" }, `read as ${said}`) : "");
    button.addEventListener("click", () => chooseImage(k));
    at("thumbnails").append(button);
  });
  const draw = element("button", { type: "button", "aria-pressed": "false", id: "draw" }, "draw one");
  draw.addEventListener("click", startDrawing);
  const shape = network.nodes[0].shape;
  if (network.complete && shape[1] === 1 && shape[2] > 1) at("thumbnails").append(draw);
}

function press(which) {
  [...at("thumbnails").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === which)));
  at("sketch").hidden = which < data.images.length;
}

function chooseImage(k) {
  [state.image, state.drawing] = [k, null];
  press(k);
  at("truth").value = String(data.images[k].label ?? "");
  update();
}

// ---- drawing

const pen = { x: 0, y: 0, down: false };

function startDrawing() {
  const [channels, , height, width] = network.nodes[0].shape;
  state.drawing = new Float64Array(channels * height * width);
  press(data.images.length);
  [pen.x, pen.y] = [width / 2, height / 2];
  at("truth").value = "";
  showPad();
  update();
}

function ink(x, y) {  // a round pen, soft at its edge
  const [channels, , height, width] = network.nodes[0].shape, radius = Math.max(0.6, Math.min(height, width) / 22);
  for (let h = 0; h < height; h++)
    for (let w = 0; w < width; w++) {
      const much = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(w + 0.5 - x, h + 0.5 - y)));
      for (let c = 0; c < channels; c++) state.drawing[(c * height + h) * width + w] = Math.max(state.drawing[(c * height + h) * width + w], Math.fround(much));
    }
}

function stroke(x, y) {
  const length = Math.hypot(x - pen.x, y - pen.y), pieces = Math.max(1, Math.ceil(length * 2));
  for (let i = 1; i <= pieces; i++) ink(pen.x + ((x - pen.x) * i) / pieces, pen.y + ((y - pen.y) * i) / pieces);
  [pen.x, pen.y] = [x, y];
}

function showPad() {
  const [, , height, width] = network.nodes[0].shape, pad = at("pad"), zoom = Math.max(1, Math.floor(252 / Math.max(height, width)));
  [pad.width, pad.height] = [width * zoom, height * zoom];
  const context = pad.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(painted(state.drawing.subarray(0, height * width), width, height, 1, true), 0, 0, pad.width, pad.height);
  context.strokeStyle = "#8a919c";
  context.setLineDash([4, 4]);
  context.strokeRect((pad.width * 4) / 28, (pad.height * 4) / 28, (pad.width * 20) / 28, (pad.height * 20) / 28);
  if (document.activeElement === pad) { context.setLineDash([]); context.strokeStyle = WINDOW; context.strokeRect((pen.x - 0.5) * zoom, (pen.y - 0.5) * zoom, zoom, zoom); }
}

function drawAt(event, fresh) {
  const [, , height, width] = network.nodes[0].shape, box = at("pad").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
  if (fresh) [pen.x, pen.y] = [x, y];
  stroke(x, y);
  showPad();
  if (!state.pending) state.pending = requestAnimationFrame(() => { state.pending = null; update(); });
}

function padKey(event) {
  const [, , height, width] = network.nodes[0].shape, by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  if (event.key === " ") pen.down = !pen.down;
  const [x, y] = [Math.min(width, Math.max(0, pen.x + by[0])), Math.min(height, Math.max(0, pen.y + by[1]))];
  if (pen.down) stroke(x, y); else [pen.x, pen.y] = [x, y];
  showPad();
  if (pen.down) update();
}

// ---- start

function start() {
  at("title").textContent = data.title;
  document.title = `Look inside ${data.title}`;
  const loss = network.nodes.at(-1).kind === "loss";
  if (loss) at("target").append(element("option", { value: "loss" }, "the loss"));
  at("truth").append(element("option", { value: "" }, "not known"));
  data.classes.forEach((name, c) => {
    at("target").append(element("option", { value: c }, `the score of ${name}`));
    at("truth").append(element("option", { value: c }, name));
  });
  state.target = loss ? "loss" : 0;
  at("is").hidden = !loss;
  network.nodes.forEach((node) => rows.push(layerRow(node)));
  at("layers").append(...rows.map((row) => row.section));
  thumbnails();
  const width = () => at("layers").clientWidth - 26;
  rows.forEach((row) => row.layout(width()));
  new ResizeObserver(([bar]) => document.documentElement.style.setProperty("--bar", `${bar.target.offsetHeight}px`)).observe(at("controls"));
  let seen = width();
  addEventListener("resize", () => { if (width() !== seen) { seen = width(); rows.forEach((row) => row.layout(width())); } });
  for (const radio of document.getElementsByName("way")) radio.addEventListener("change", () => { state.way = radio.value; stepper.go(null); });
  at("target").addEventListener("change", () => { state.target = at("target").value === "loss" ? "loss" : Number(at("target").value); update(); });
  at("truth").addEventListener("change", update);
  const pad = at("pad");
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); pad.focus(); drawAt(event, true); });
  pad.addEventListener("pointermove", (event) => { if (event.buttons) drawAt(event, false); });
  pad.addEventListener("keydown", padKey);
  pad.addEventListener("focus", showPad);
  pad.addEventListener("blur", showPad);
  at("clear").addEventListener("click", startDrawing);
  chooseImage(0);
  stepper.go(null);
  const first = network.nodes.find((node) => WEIGHTED.includes(node.kind)) || network.nodes.at(-1);
  if (innerWidth > 900) select(first.number, strongest(state.values[first.number]));
}

start();
