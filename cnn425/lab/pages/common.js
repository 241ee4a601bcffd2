"use strict";
// What all pages share: elements, numbers as words, and stepping by buttons and arrow keys.

const at = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Numbers as words: three digits in a cell, five in a sum.
const minus = (words) => words.replace(/-/g, "−");
function short(v, digits = 3) {
  if (v === 0 || v !== v) return v === 0 ? "0" : "NaN";
  const size = Math.abs(v);
  return minus(size < 0.001 || size >= 999.5 ? v.toExponential(1) : size >= 99.5 ? v.toFixed(0) : v.toPrecision(digits));
}
function long(v) {
  const size = Math.abs(v);
  return minus(size !== 0 && (size < 1e-4 || size >= 1e6) ? v.toExponential(4) : String(Number(v.toPrecision(5))));
}

class Stepper {  // buttons first, previous, play, next, all; `show(step)` with null for everything at once, `start()`: the first step from there
  constructor(count, show, start = () => 0) {
    [this.count, this.show, this.start, this.step, this.timer] = [count, show, start, null, null];
    at("first").addEventListener("click", () => this.go(0));
    at("previous").addEventListener("click", () => this.by(-1));
    at("next").addEventListener("click", () => this.by(1));
    at("all").addEventListener("click", () => this.go(null));
    at("play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { this.by(by); event.preventDefault(); }
    });
  }

  go(to) {
    this.pause();
    this.move(to);
  }

  by(steps) {
    if (this.step !== null) this.go(this.step + steps);
    else if (steps > 0) this.go(this.start());
  }

  move(to) {
    const last = this.count() - 1;
    this.step = to === null ? null : Math.max(0, Math.min(last, to));
    this.show(this.step);
    at("first").disabled = at("previous").disabled = this.step === null || this.step === 0;
    at("next").disabled = this.step === last;
  }

  play() {
    if (this.step === null || this.step === this.count() - 1) this.move(this.step === null ? this.start() : 0);
    this.timer = setInterval(() => (this.step === null || this.step === this.count() - 1 ? this.pause() : this.move(this.step + 1)), 1300);
    at("play").textContent = "pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    at("play").textContent = "play";
  }
}
