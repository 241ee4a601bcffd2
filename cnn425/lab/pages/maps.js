"use strict";
// Numbers as pictures. White is zero, red positive, blue negative; images of brightness are grey, white without ink.

const RED = [[255, 255, 255], [244, 165, 130], [178, 24, 43]], BLUE = [[255, 255, 255], [146, 197, 222], [33, 102, 172]], GREY = [[255, 255, 255], [128, 128, 128], [0, 0, 0]];

function shade(ladder, t) {
  const step = Math.min(1, Math.floor(t * 2)), f = t * 2 - step;
  return ladder[step].map((a, i) => Math.round(a + f * (ladder[step + 1][i] - a)));
}
const SHADES = { red: [], blue: [], grey: [] };
for (let i = 0; i < 256; i++) {
  SHADES.red.push(shade(RED, i / 255));
  SHADES.blue.push(shade(BLUE, i / 255));
  SHADES.grey.push(shade(GREY, i / 255));
}

function colour(value, scale, grey) {
  const t = Math.min(255, Math.round(Math.abs(value) / scale * 255)) || 0;
  return (grey ? SHADES.grey : value >= 0 ? SHADES.red : SHADES.blue)[t];
}

function largest(values) {
  let most = 0;
  for (const v of values) if (Math.abs(v) > most && Math.abs(v) < Infinity) most = Math.abs(v);
  return most || 1;
}

function painted(values, width, height, scale, grey) {  // a canvas with one pixel per number
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    const [r, g, b] = colour(values[i], scale, grey);
    image.data[4 * i] = r;
    image.data[4 * i + 1] = g;
    image.data[4 * i + 2] = b;
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

class Row {  // all maps of one layer on one canvas
  constructor(node, canvas, labels) {
    [this.node, this.canvas, this.labels] = [node, canvas, labels];
    [, this.depth, this.height, this.width] = node.shape;
    this.tiles = node.maps * this.depth;
    this.vector = node.points === 1;
    this.wide = this.vector && this.tiles <= 24;  // few enough to write the numbers in
    this.marks = [];
  }

  layout(available) {
    const most = Math.max(this.height, this.width), ratio = window.devicePixelRatio || 1;
    const side = this.height === 1 ? 220 : this.node.kind === "image" ? 150 : 88;  // pixels on the screen
    this.zoom = this.wide ? 1 : this.vector ? 13 : Math.max(1, Math.min(24, Math.floor(side / most)));
    if (this.zoom * this.width > available) this.zoom = available / this.width;
    this.tall = this.height === 1 && !this.vector ? Math.max(20, this.zoom) : this.zoom;  // signals are drawn as a strip
    [this.tileWidth, this.tileHeight] = this.wide ? [62, this.labels ? 46 : 30] : [this.zoom * this.width, this.tall * this.height];
    this.gap = this.vector && !this.wide ? 1 : 4;
    this.columns = Math.max(1, Math.min(this.tiles, Math.floor((available + this.gap) / (this.tileWidth + this.gap))));
    const rows = Math.ceil(this.tiles / this.columns);
    const [w, h] = [this.columns * (this.tileWidth + this.gap) + 4, rows * (this.tileHeight + this.gap) + 4];
    [this.canvas.width, this.canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    [this.canvas.style.width, this.canvas.style.height] = [`${w}px`, `${h}px`];
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.draw();
  }

  show(values, grey) {  // null: nothing is known yet
    this.values = values;
    if (!values || this.wide) this.sheet = null;
    else this.sheet = painted(values, this.width, this.tiles * this.height, largest(values), grey);
    this.draw();
  }

  mark(marks) {  // [{units, strong, colour}]
    if (!marks.length && !this.marks.length) return;
    this.marks = marks;
    this.draw();
  }

  corner(tile) {
    return [2 + (tile % this.columns) * (this.tileWidth + this.gap), 2 + Math.floor(tile / this.columns) * (this.tileHeight + this.gap)];
  }

  draw() {
    if (!this.context) return;
    const c = this.context;
    c.clearRect(0, 0, this.canvas.width, this.canvas.height);
    c.imageSmoothingEnabled = false;
    for (let tile = 0; tile < this.tiles; tile++) {
      const [x, y] = this.corner(tile);
      if (this.wide) this.write(tile, x, y);
      else if (this.sheet) c.drawImage(this.sheet, 0, tile * this.height, this.width, this.height, x, y, this.tileWidth, this.tileHeight);
      else { c.fillStyle = "#eceef1"; c.fillRect(x, y, this.tileWidth, this.tileHeight); }
      if (!this.vector || this.wide) { c.strokeStyle = "#aab1bb"; c.lineWidth = 1; c.strokeRect(x - 0.5, y - 0.5, this.tileWidth + 1, this.tileHeight + 1); }
    }
    for (const mark of this.marks) this.outline(mark);
  }

  write(tile, x, y) {
    const c = this.context;
    const [r, g, b] = this.values ? colour(this.values[tile], largest(this.values), false) : [236, 238, 241];
    c.fillStyle = `rgb(${r} ${g} ${b})`;
    c.fillRect(x, y, this.tileWidth, this.tileHeight);
    c.fillStyle = 0.3 * r + 0.6 * g + 0.1 * b < 120 ? "#fff" : "#111";
    c.textAlign = "center";
    c.font = "12px system-ui, sans-serif";
    const lines = [...(this.labels ? [this.labels[tile]] : []), this.values ? short(this.values[tile]) : ""];
    lines.forEach((words, i) => c.fillText(words, x + this.tileWidth / 2, y + this.tileHeight / 2 + 4 + (i - (lines.length - 1) / 2) * 17, this.tileWidth - 4));
  }

  box(unit) {  // where a unit is drawn
    const tile = Math.floor(unit / (this.height * this.width)), [x, y] = this.corner(tile);
    if (this.vector) return [x, y, this.tileWidth, this.tileHeight, tile, 0, 0];
    const row = Math.floor(unit / this.width) % this.height, column = unit % this.width;
    return [x + column * this.zoom, y + row * this.tall, this.zoom, this.tall, tile, row, column];
  }

  outline({ units, colour, strong }) {
    const c = this.context, tiles = new Map();
    for (const unit of units) {
      const box = this.box(unit);
      if (!tiles.has(box[4])) tiles.set(box[4], []);
      tiles.get(box[4]).push(box);
    }
    for (const [tile, boxes] of tiles) {
      const [top, left] = [Math.min(...boxes.map((b) => b[5])), Math.min(...boxes.map((b) => b[6]))];
      const [bottom, right] = [Math.max(...boxes.map((b) => b[5])), Math.max(...boxes.map((b) => b[6]))];
      const solid = boxes.length === (bottom - top + 1) * (right - left + 1);
      const [x, y] = this.corner(tile);
      const rectangles = !solid || this.vector ? boxes.map((b) => b.slice(0, 4)) : [[x + left * this.zoom, y + top * this.tall, (right - left + 1) * this.zoom, (bottom - top + 1) * this.tall]];
      for (const [a, b, w, h] of rectangles) {
        c.strokeStyle = "#fff";
        c.lineWidth = strong ? 4.5 : 3.5;
        c.strokeRect(a, b, w, h);
        c.strokeStyle = colour;
        c.lineWidth = strong ? 2.5 : 1.5;
        c.strokeRect(a, b, w, h);
      }
    }
  }

  hit(x, y) {  // the unit at a place on the canvas, in CSS pixels; -1: none
    const scale = this.canvas.getBoundingClientRect().width / parseFloat(this.canvas.style.width) || 1;
    [x, y] = [x / scale - 2, y / scale - 2];
    const column = Math.floor(x / (this.tileWidth + this.gap)), row = Math.floor(y / (this.tileHeight + this.gap)), tile = row * this.columns + column;
    if (column < 0 || row < 0 || column >= this.columns || tile >= this.tiles) return -1;
    const inX = x - column * (this.tileWidth + this.gap), inY = y - row * (this.tileHeight + this.gap);
    if (this.vector) return tile;
    const h = Math.min(this.height - 1, Math.max(0, Math.floor(inY / this.tall))), w = Math.min(this.width - 1, Math.max(0, Math.floor(inX / this.zoom)));
    return (tile * this.height + h) * this.width + w;
  }
}
