"use strict";
// The network, computed: forward, backward, and the terms of every sum. Letters as in the lecture: o c maps, p position, k cell of a window.
// Tensors are flat arrays (C, D, H, W). A layer with windows is a table `taps[p * K + k]`: the pixel that a cell shows, -1 in the padding.

const WEIGHTED = ["conv", "local", "linear"], WINDOWED = [...WEIGHTED, "max", "average", "lp"];

function decoded(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

class Network {
  constructor(data) {
    const numbers = decoded(data.numbers);
    this.slice = ([start, length]) => numbers.subarray(start, start + length);
    this.nodes = data.nodes;
    this.scores = this.nodes.length - 1;
    const last = this.nodes[this.scores];
    if (last.shape[0] > 1 && last.shape[1] * last.shape[2] * last.shape[3] === 1) {  // a vector of scores: the page adds the loss
      if (last.kind !== "softmax") this.nodes.push({ kind: "softmax", layer: "softmax", name: "", source: this.nodes.length - 1, shape: last.shape });
      this.nodes.push({ kind: "loss", layer: "cross-entropy", name: "", source: this.nodes.length - 1, shape: [1, 1, 1, 1] });
    }
    this.nodes.forEach((node, k) => this.prepare(node, k));
    this.entitle();
    this.complete = this.nodes.every((node) => node.kind === "image" || (node.kind !== "stored" && !node.kept));
  }

  prepare(node, number) {
    node.number = number;
    [node.maps] = node.shape;
    node.points = node.shape[1] * node.shape[2] * node.shape[3];
    node.size = node.maps * node.points;
    node.readers = this.nodes.filter((other) => other.source === number);
    const source = this.nodes[node.source];
    if (node.weight) node.weights = this.slice(node.weight);
    if (node.bias) node.biases = this.slice(node.bias);
    if (!WINDOWED.includes(node.kind)) return;
    if (node.kind === "linear") {  // one window: the whole image
      const image = source.points > 1;
      [node.P, node.K, node.inputs, node.stride] = [1, image ? source.points : source.maps, image ? source.maps : 1, image ? source.points : source.maps];
      node.taps = Int32Array.from({ length: node.K }, (_, k) => k);
      node.kernel = image ? source.shape.slice(1) : [1, 1, node.K];
    } else {
      this.windows(node, source);
    }
    node.perGroup = node.weights ? node.maps / node.groups : 1;
  }

  entitle() {  // names in the lecture's words; the second convolution is "convolution 2"
    const names = { conv: "convolution", local: "locally connected layer", linear: "fully connected layer", max: "max pool", average: "average pool", lp: "p-norm pool", relu: "ReLU", loss: "cross-entropy" };
    for (const node of this.nodes) {
      const alike = this.nodes.filter((other) => other.kind === node.kind && other.kind !== "stored");
      const words = node.kind === "stored" ? node.layer : names[node.kind] || node.kind;
      if (node.kind === "image") node.title = node.shape[1] > 1 ? "volume" : node.shape[2] > 1 ? "image" : node.shape[3] > 1 ? "signal" : "input";
      else node.title = alike.length > 1 ? `${words} ${alike.indexOf(node) + 1}` : words;
    }
  }

  windows(node, source) {
    const [a, b, c] = node.cells, [, , H, W] = source.shape;
    node.kernel = node.cells.map((rows) => rows[0].length);
    [node.P, node.K, node.stride] = [node.points, node.kernel[0] * node.kernel[1] * node.kernel[2], source.points];
    node.inputs = node.weights ? source.maps / node.groups : 1;
    node.taps = new Int32Array(node.P * node.K);
    let n = 0;
    for (const u of a) for (const v of b) for (const w of c)
      for (const d of u) for (const h of v) for (const x of w)
        node.taps[n++] = d < 0 || h < 0 || x < 0 ? -1 : (d * H + h) * W + x;
  }

  // ---- forward

  forward(image, given) {  // `given(node)`: the numbers of a layer that the page cannot compute
    const values = [];
    for (const node of this.nodes)
      values.push(node.kind === "image" ? Float64Array.from(image) : node.kind === "stored" || node.kept ? Float64Array.from(given(node)) : this.output(node, values[node.source]));
    return values;
  }

  output(node, x) {
    if (node.weights) return this.weighted(node, x);
    if (node.taps) return this.pooled(node, x);
    if (node.kind === "relu") return x.map((v) => (v > 0 ? v : v === v ? 0 : v));
    if (node.kind === "sigmoid") return x.map((v) => 1 / (1 + Math.exp(-v)));
    if (node.kind === "tanh") return x.map(Math.tanh);
    if (node.kind === "softmax") {
      const most = x.reduce((a, b) => Math.max(a, b)), powers = x.map((v) => Math.exp(v - most)), sum = powers.reduce((a, b) => a + b);
      return powers.map((v) => v / sum);
    }
    this.truth ??= x.indexOf(x.reduce((a, b) => Math.max(a, b)));  // no true class is given: the network's own answer
    return Float64Array.of(-Math.log(x[this.truth]));  // the loss
  }

  weightAt(node, o, c, p, k) {
    return node.weights[(((node.kind === "local" ? p : 0) * (node.kept || node.maps) + o) * node.inputs + c) * node.K + k];
  }

  biasAt(node, o, p) {
    return node.biases ? node.biases[node.biases.length > node.maps ? o * node.P + p : o] : 0;
  }

  weighted(node, x) {
    const { P, K, taps, stride, inputs, weights } = node, y = new Float64Array(node.size);
    for (let o = 0; o < node.maps; o++) {
      const first = Math.floor(o / node.perGroup) * inputs;
      for (let p = 0; p < P; p++) {
        let sum = this.biasAt(node, o, p), w = ((node.kind === "local" ? p : 0) * node.maps + o) * inputs * K;
        for (let c = 0; c < inputs; c++) {
          const base = (first + c) * stride;
          for (let k = p * K; k < p * K + K; k++, w++) if (taps[k] >= 0) sum += weights[w] * x[base + taps[k]];
        }
        y[o * P + p] = sum;
      }
    }
    return y;
  }

  pooled(node, x) {
    const { P, K, taps, stride } = node, y = new Float64Array(node.size);
    node.winners = new Int32Array(node.size).fill(-1);
    for (let o = 0; o < node.maps; o++)
      for (let p = 0; p < P; p++) {
        let sum = 0, best = -Infinity;
        for (let k = p * K; k < p * K + K; k++) {
          if (taps[k] < 0) continue;
          const v = x[o * stride + taps[k]];
          sum += node.kind === "lp" ? v ** node.norm : v;
          if (v > best || v !== v) { best = v; node.winners[o * P + p] = taps[k]; }
        }
        y[o * P + p] = node.kind === "max" ? best : node.kind === "average" ? sum / node.divisors[p] : (sum / node.divisors[p]) ** (1 / node.norm);
      }
    return y;
  }

  // ---- backward

  backward(values, target, given) {  // target: "loss", or the number of a class; `given(node, class)`: what a layer sends back that the page cannot compute
    const adjoints = this.nodes.map(() => null), last = this.nodes[this.scores];
    if (target === "loss") adjoints[this.nodes.length - 1] = Float64Array.of(1);
    else adjoints[this.scores] = Float64Array.from({ length: last.size }, (_, i) => (Math.floor(i / last.points) === target ? 1 : 0));
    for (let k = this.nodes.length - 1; k >= 0; k--) {
      const node = this.nodes[k];
      if (node.adjoints) adjoints[k] = this.combined(node, adjoints[this.scores], given);
      if (adjoints[k] && node.source >= 0 && node.kind !== "stored" && !node.kept && !this.nodes[node.source].adjoints) {
        const source = (adjoints[node.source] ??= new Float64Array(this.nodes[node.source].size));
        this.pull(node, values[node.source], values[k], adjoints[k], source);
      }
    }
    return adjoints;
  }

  combined(node, scores, given) {
    const sum = new Float64Array(node.size), points = this.nodes[this.scores].points;
    for (let c = 0; c < this.nodes[this.scores].maps; c++) {
      const share = scores[c * points];
      if (share) given(node, c).forEach((v, i) => { sum[i] += share * v; });
    }
    return sum;
  }

  pull(node, x, y, gy, gx) {
    if (node.kind === "loss") gx[this.truth] -= gy[0] / x[this.truth];
    else if (node.kind === "softmax") {
      const mean = gy.reduce((sum, g, i) => sum + g * y[i], 0);
      gy.forEach((g, i) => { gx[i] += y[i] * (g - mean); });
    } else if (!node.taps) gy.forEach((g, i) => { gx[i] += g * this.slope(node, x[i], y[i]); });
    else if (node.weights) this.pullWeighted(node, gy, gx);
    else
      for (let o = 0; o < node.maps; o++)
        for (let p = 0; p < node.P; p++)
          for (let k = 0; k < node.K; k++) {
            const tap = node.taps[p * node.K + k];
            if (tap >= 0) gx[o * node.stride + tap] += gy[o * node.P + p] * this.share(node, o, p, tap, x, y);
          }
  }

  slope(node, x, y) {  // of one number by one number
    return node.kind === "relu" ? (x > 0 ? 1 : 0) : node.kind === "sigmoid" ? y * (1 - y) : node.kind === "tanh" ? 1 - y * y : 1;
  }

  share(node, o, p, tap, x, y) {  // of a pool by one pixel of its window
    if (node.kind === "max") return node.winners[o * node.P + p] === tap ? 1 : 0;
    if (node.kind === "average") return 1 / node.divisors[p];
    const v = y[o * node.P + p];
    return v === 0 ? 0 : v ** (1 - node.norm) * x[o * node.stride + tap] ** (node.norm - 1) / node.divisors[p];
  }

  pullWeighted(node, gy, gx) {
    const { P, K, taps, stride, inputs, weights } = node;
    for (let o = 0; o < node.maps; o++) {
      const first = Math.floor(o / node.perGroup) * inputs;
      for (let p = 0; p < P; p++) {
        const g = gy[o * P + p];
        let w = ((node.kind === "local" ? p : 0) * node.maps + o) * inputs * K;
        if (g === 0) continue;
        for (let c = 0; c < inputs; c++) {
          const base = (first + c) * stride;
          for (let k = p * K; k < p * K + K; k++, w++) if (taps[k] >= 0) gx[base + taps[k]] += g * weights[w];
        }
      }
    }
  }

  // ---- the terms of the sums

  positions(node, unit) {  // that use the weights of a unit
    const p = unit % node.P, all = [...Array(node.P).keys()];
    return node.kind === "conv" ? all : node.sets ? all.filter((q) => node.sets[q] === node.sets[p]) : [p];
  }

  gradients(node, unit, x, g) {  // of the weights of a unit, in the order of its window: the sum over positions of adjoint · pixel
    const { P, K, taps, stride, inputs } = node, o = Math.floor(unit / P), first = Math.floor(o / node.perGroup) * inputs, sums = new Float64Array(inputs * K);
    for (const p of this.positions(node, unit))
      for (let c = 0; c < inputs; c++)
        for (let k = 0; k < K; k++) if (taps[p * K + k] >= 0) sums[c * K + k] += g[o * P + p] * x[(first + c) * stride + taps[p * K + k]];
    return sums;
  }

  window(node, unit) {  // what a unit sees: by input map, the cells of its window; null if the page has no weights for it
    const o = Math.floor(unit / node.P), p = unit % node.P;
    if (node.kept && o >= node.kept) return null;
    const first = node.weights ? Math.floor(o / node.perGroup) * node.inputs : o;
    return Array.from({ length: node.inputs }, (_, c) => ({
      map: first + c,
      cells: Array.from({ length: node.K }, (_, k) => {
        const tap = node.taps[p * node.K + k];
        return { pixel: tap < 0 ? -1 : (first + c) * node.stride + tap, weight: node.weights ? this.weightAt(node, o, c, p, k) : 1 };
      }),
    }));
  }

  seenBy(node, pixel, x, y) {  // which windows saw a pixel of the source: by output map, the units with their slopes
    const c = Math.floor(pixel / node.stride), tap = pixel % node.stride, seen = [];
    for (let i = 0; i < node.taps.length; i++) if (node.taps[i] === tap) seen.push([Math.floor(i / node.K), i % node.K]);
    const group = node.weights ? Math.floor(c / node.inputs) : c;
    const from = group * node.perGroup, to = Math.min(from + node.perGroup, node.kept || Infinity);
    const maps = [];
    for (let o = from; o < to; o++)
      maps.push({
        map: o,
        cells: seen.map(([p, k]) => ({
          unit: o * node.P + p,
          slope: node.weights ? this.weightAt(node, o, c - group * node.inputs, p, k) : this.share(node, o, p, tap, x, y),
        })),
      });
    return maps;
  }
}
