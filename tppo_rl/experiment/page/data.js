// The block of bytes that tppo_rl/experiment/page_data.py writes, as columns.

const UNKNOWN = 65535;
const MISSING = -32768;
const TYPES = {
  uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
};
const SLICE = 1 << 20;
const LONGEST_RUN = 8;

const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

async function unpacked(element) {
  const text = element.textContent.trim();
  element.remove();
  const zipped = new Uint8Array(Math.floor((text.length * 3) / 4) - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  let at = 0;
  for (let from = 0; from < text.length; from += SLICE) {
    const part = atob(text.slice(from, from + SLICE));
    for (let i = 0; i < part.length; i++) zipped[at++] = part.charCodeAt(i);
    await pause();
  }
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function tableOf(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  for (const [name, [type, offset, count]] of Object.entries(header.arrays)) {
    columns[name] = new TYPES[type](buffer, 4 + length + offset, count);
  }
  return { header, columns, episodes: columns.episode_id.length };
}

class Run {
  constructor({ header, columns, episodes }) {
    this.header = header;
    this.columns = columns;
    this.size = episodes;
    this.parts = new Map(Object.entries(header.parts).map(([at, hex]) => [Number(at), bytesOf(hex)]));
    this.special = new Set(header.special);
    this.lower = new Array(episodes);
    this.lowerPrompts = header.prompts.map((prompt) => prompt.toLowerCase());
    this.lowerPieces = header.pieces.map((piece) => piece.toLowerCase());
    this.byPrompt = header.prompts.map(() => []);
    for (let e = 0; e < episodes; e++) this.byPrompt[columns.episode_prompt[e]].push(e);
  }

  has(name) { return name === "probability" || name === "staleness" || this.header.has.includes(name); }

  range(e) { return [this.columns.token_start[e], this.columns.token_start[e + 1]]; }

  windows(e) {
    const c = this.columns;
    const found = [];
    for (let w = c.window_first[e]; w < c.window_first[e + 1]; w++) {
      found.push({
        index: c.window_index[w], start: c.window_start[w], stop: c.window_stop[w],
        iteration: c.window_iteration[w], boundary: c.window_boundary_value[w],
      });
    }
    return found;
  }

  name(e) { return this.header.names[this.columns.episode_prompt[e]]; }

  prompt(e) { return this.header.prompts[this.columns.episode_prompt[e]]; }

  group(e) {
    const group = this.columns.episode_group[e];
    return this.same(e).filter((other) => this.columns.episode_group[other] === group);
  }

  same(e) { return this.byPrompt[this.columns.episode_prompt[e]]; }

  // Of all tokens of a response; NaN where nothing is known.
  numbers(e, name) {
    const [from, to] = this.range(e);
    const c = this.columns;
    const found = new Float32Array(to - from).fill(NaN);
    if (name === "probability") {
      for (let i = from; i < to; i++) {
        if (c.token_log_prob[i] !== UNKNOWN) found[i - from] = Math.exp(-c.token_log_prob[i] / this.header.log_prob_steps);
      }
    } else if (name === "staleness") {
      for (const window of this.windows(e)) {
        for (let i = window.start; i < window.stop; i++) {
          const version = c.token_version[from + i];
          if (version >= 0) found[i] = window.iteration - 1 - version;
        }
      }
    } else if (this.has(name)) {
      const column = c["token_" + name];
      const scale = c[name + "_scale"][e];
      for (let i = from; i < to; i++) if (column[i] !== MISSING) found[i - from] = column[i] * scale;
    }
    return found;
  }

  rewards(e) {
    const [from, to] = this.range(e);
    const found = new Map();
    const at = this.columns.reward_at;
    let low = 0;
    let high = at.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (at[middle] < from) low = middle + 1; else high = middle;
    }
    for (; low < at.length && at[low] < to; low++) found.set(at[low] - from, this.columns.reward[low]);
    return found;
  }

  // What each token from `from` to `to` shows: text, or a note where its bytes are no text alone.
  shown(from, to) {
    const { pieces } = this.header;
    const piece = this.columns.piece;
    const found = [];
    for (let i = from; i < to; i++) {
      if (!this.parts.has(piece[i])) {
        found.push({ text: pieces[piece[i]], special: this.special.has(piece[i]) });
        continue;
      }
      let last = i;
      while (last < to && this.parts.has(piece[last])) last++;
      for (const part of characters(Array.from(piece.subarray(i, last), (at) => this.parts.get(at)))) found.push(part);
      i = last - 1;
    }
    return found;
  }

  text(from, to) { return this.shown(from, to).map((one) => one.text).join(""); }

  beginning(e, tokens) {
    const [from, to] = this.range(e);
    return this.text(from, Math.min(to, from + tokens));
  }

  // In small letters, for searches; kept once it is made.
  searchable(e) {
    if (this.lower[e] === undefined) {
      const [from, to] = this.range(e);
      const piece = this.columns.piece;
      let text = "";
      if (this.parts.size) text = this.text(from, to).toLowerCase();
      else for (let i = from; i < to; i++) text += this.lowerPieces[piece[i]];
      this.lower[e] = text;
    }
    return this.lower[e];
  }

  matches(e, words) {
    return this.lowerPrompts[this.columns.episode_prompt[e]].includes(words) || this.searchable(e).includes(words);
  }

  when(e) {
    const iteration = this.columns.episode_iteration[e];
    return this.columns.episode_is_heldout[e] ? `held out, after ${counting(iteration, "update")}` : `iteration ${iteration}`;
  }

  outcome(e) {
    const end = this.columns.episode_end[e];
    if (end === 0) return "open";
    const verdict = { "-1": "ended", 0: "wrong", 1: "right" }[this.columns.episode_correct[e]];
    return end === 2 ? verdict + ", cut off" : verdict;
  }
}

function bytesOf(hex) {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

// Neighbors whose bytes are characters together: the last one shows the text, the others are marked as parts of it.
function characters(parts) {
  const found = [];
  for (let i = 0; i < parts.length; i++) {
    let text = null;
    let last = i;
    for (; last < Math.min(parts.length, i + LONGEST_RUN); last++) {
      text = decoded(parts.slice(i, last + 1));
      if (text !== null) break;
    }
    if (text === null) {
      found.push({ text: "", bytes: hexOf(parts[i]), broken: true });
      continue;
    }
    for (; i < last; i++) found.push({ text: "", bytes: hexOf(parts[i]), part: true });
    found.push({ text, bytes: hexOf(parts[i]), part: true });
  }
  return found;
}

function decoded(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(whole);
  } catch {
    return null;
  }
}

function hexOf(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}
