// Elements, texts and shades. Text of a model goes into `textContent` and nowhere else.

const SHADES = 8;
const OPEN_PROMPT = 160;
const LONGEST_LINE = 300;
const QUANTITIES = {
  advantages: { label: "advantage", signed: true, digits: 3 },
  values: { label: "value", signed: false, digits: 3 },
  probability: { label: "probability", signed: false, digits: 3 },
  staleness: { label: "staleness", signed: false, digits: 0 },
};

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Letters that cannot be seen, or turn around what follows, as their numbers.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

function visible(text) {
  return text.replace(UNSEEN, (letter) => `⟨${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

function oneLine(text) { return visible(text.slice(0, LONGEST_LINE).replace(/\s+/g, " ").trim()); }

const byId = (id) => document.getElementById(id);

function figure(number, digits) {
  return Number.isFinite(number) ? number.toFixed(digits) : "–";
}

function counting(number, what) { return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`; }

// Limits of a quantity's colors; signed ones are the same on both sides of 0.
function limits(name, numbers) {
  if (name === "probability") return [0, 1];
  let low = Infinity;
  let high = -Infinity;
  for (const number of numbers) {
    if (number < low) low = number;
    if (number > high) high = number;
  }
  if (low === Infinity) return [0, 1];
  if (QUANTITIES[name].signed) {
    const largest = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-largest, largest];
  }
  if (name === "staleness") return [0, Math.max(1, high)];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function shadeOf(name, number, [low, high]) {
  if (!Number.isFinite(number)) return "";
  const place = Math.min(1, Math.max(0, (number - low) / (high - low)));
  if (QUANTITIES[name].signed) {
    const step = Math.round(Math.abs(place - 0.5) * 2 * SHADES);
    return step === 0 ? "" : (place > 0.5 ? "up" : "down") + step;
  }
  // Probabilities that are low are what one looks for.
  const step = Math.round((name === "probability" ? 1 - place : place) * SHADES);
  return step === 0 ? "" : "much" + step;
}

function tokenElement(one, index, environment) {
  const element = make("span", environment ? "t env" : "t");
  element.tokenIndex = index;
  element.one = one;
  if (one.broken) element.classList.add("broken");
  else if (one.part && !one.text) element.classList.add("part");
  else if (one.special) element.classList.add("special");
  if (one.broken) element.dataset.bytes = one.bytes;
  element.textContent = visible(one.text);
  return element;
}

function legend(name, [low, high]) {
  const { label, signed, digits } = QUANTITIES[name];
  const found = make("span", "legend");
  const steps = signed ? ["down8", "down4", "", "up4", "up8"] : ["", "much2", "much4", "much6", "much8"];
  const [first, last] = name === "probability" ? [high, low] : [low, high];
  found.append(make("span", "soft", label + " " + figure(first, Math.min(digits, 2))));
  for (const step of steps) found.append(make("i", step));
  found.append(make("span", "soft", figure(last, Math.min(digits, 2))));
  return found;
}

// Closed, it shows what other prompts do not say.
function promptBox(run, e) {
  const found = make("details", "prompt");
  const text = run.prompt(e);
  found.open = text.length < OPEN_PROMPT;
  const summary = make("summary", "soft", "Prompt");
  summary.append(make("span", "", oneLine(run.name(e))));
  found.append(summary, make("div", "text", visible(text)));
  return found;
}
