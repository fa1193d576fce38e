// A quantity over the response: least and largest of each column of pixels, ends of windows, values at them.

const CURVE_HEIGHT = 150;
const MARGIN = { left: 44, right: 10, top: 10, bottom: 20 };

class Curve {
  constructor(name, numbers, windows, onChoice) {
    this.name = name;
    this.numbers = numbers;
    this.windows = windows;
    this.canvas = make("canvas", "curve");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", QUANTITIES[name].label + " over the response");
    this.marked = -1;
    this.canvas.addEventListener("click", (event) => onChoice(this.tokenAt(event)));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
  }

  close() { this.observer.disconnect(); }

  get inner() { return Math.max(1, this.canvas.clientWidth - MARGIN.left - MARGIN.right); }

  tokenAt(event) {
    const x = event.clientX - this.canvas.getBoundingClientRect().left - MARGIN.left;
    const last = this.numbers.length - 1;
    return Math.min(last, Math.max(0, Math.round((x / this.inner) * last)));
  }

  mark(index) {
    this.marked = index;
    this.draw();
  }

  bounds() {
    let [low, high] = limits(this.name, this.numbers);
    if (this.name === "values") {
      for (const { boundary } of this.windows) {
        if (Number.isFinite(boundary)) { low = Math.min(low, boundary); high = Math.max(high, boundary); }
      }
    }
    return [low, high];
  }

  draw() {
    const { canvas, numbers } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(CURVE_HEIGHT * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const ink = (name) => style.getPropertyValue(name).trim();
    const [low, high] = this.bounds();
    const last = Math.max(1, numbers.length - 1);
    const x = (index) => MARGIN.left + (Math.min(index, last) / last) * this.inner;
    const span = CURVE_HEIGHT - MARGIN.top - MARGIN.bottom;
    const y = (number) => MARGIN.top + (1 - (number - low) / (high - low)) * span;

    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.lineWidth = 1;
    const ticks = low < 0 && high > 0 ? [low, 0, high] : [low, (low + high) / 2, high];
    for (const tick of ticks) {
      pen.strokeStyle = ink("--line");
      pen.beginPath();
      pen.moveTo(MARGIN.left, y(tick));
      pen.lineTo(width - MARGIN.right, y(tick));
      pen.stroke();
      pen.fillStyle = ink("--soft");
      pen.fillText(tick.toFixed(2), MARGIN.left - 5, y(tick));
    }
    pen.strokeStyle = ink("--window");
    pen.setLineDash([3, 3]);
    for (const { start } of this.windows) {
      if (start === 0) continue;
      pen.beginPath();
      pen.moveTo(x(start - 0.5), MARGIN.top);
      pen.lineTo(x(start - 0.5), CURVE_HEIGHT - MARGIN.bottom);
      pen.stroke();
    }
    pen.setLineDash([]);
    this.line(pen, x, y, ink("--curve"));
    if (this.name === "values") this.boundaries(pen, x, y, ink("--boundary"));
    pen.fillStyle = ink("--soft");
    pen.textAlign = "left";
    pen.fillText("token 1", MARGIN.left, CURVE_HEIGHT - 8);
    pen.textAlign = "right";
    pen.fillText(String(numbers.length), width - MARGIN.right, CURVE_HEIGHT - 8);
    if (this.marked >= 0) {
      pen.strokeStyle = ink("--ink");
      pen.beginPath();
      pen.moveTo(x(this.marked), MARGIN.top);
      pen.lineTo(x(this.marked), CURVE_HEIGHT - MARGIN.bottom);
      pen.stroke();
    }
  }

  line(pen, x, y, color) {
    const { numbers } = this;
    const columns = Math.max(1, Math.round(this.inner));
    const each = Math.max(1, numbers.length / columns);
    pen.strokeStyle = color;
    pen.lineWidth = 1.5;
    pen.beginPath();
    let drawn = false;
    for (let from = 0; from < numbers.length; from += each) {
      let least = Infinity;
      let most = -Infinity;
      const start = Math.floor(from);
      for (let i = start; i < Math.min(numbers.length, Math.max(start + 1, Math.floor(from + each))); i++) {
        if (numbers[i] < least) least = numbers[i];
        if (numbers[i] > most) most = numbers[i];
      }
      if (least === Infinity) { drawn = false; continue; }
      if (drawn) pen.lineTo(x(start), y(most)); else pen.moveTo(x(start), y(most));
      if (least !== most) pen.lineTo(x(start), y(least));
      else if (!drawn) pen.lineTo(x(start) + 1, y(most));
      drawn = true;
    }
    pen.stroke();
  }

  boundaries(pen, x, y, color) {
    pen.fillStyle = color;
    for (const { stop, boundary } of this.windows) {
      if (!Number.isFinite(boundary)) continue;
      pen.beginPath();
      pen.arc(x(stop - 1), y(boundary), 4, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}
