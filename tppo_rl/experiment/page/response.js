// One response: its facts, a curve over it, its tokens by window, and what is known of the chosen token.

const CHUNK = 400;
const FRAME_MS = 12;

class ResponseView {
  constructor(run, e, choice, words) {
    this.run = run;
    this.e = e;
    this.choice = choice;
    this.words = words;
    [this.from, this.to] = run.range(e);
    this.windows = run.windows(e);
    this.rewards = run.rewards(e);
    this.spans = new Array(this.to - this.from);
    this.known = {};
    this.offered = Object.keys(QUANTITIES).filter((name) => this.run.has(name) && this.numbersOf(name).some(Number.isFinite));
    this.chosen = -1;
    this.closed = false;
    this.element = make("article", "response");
    this.element.append(this.facts(), promptBox(this.run, this.e), this.controls(), this.curveBox(), this.body());
    this.shade();
    this.draw();
    this.fill();
  }

  close() {
    this.closed = true;
    if (this.curve) this.curve.close();
    byId("token").hidden = true;
  }

  numbersOf(name) {
    this.known[name] ??= this.run.numbers(this.e, name);
    return this.known[name];
  }

  // What was last chosen, or where this response has none of it, its probabilities.
  chosenFor(key) {
    const name = this.choice[key];
    if (name === "" || this.offered.includes(name)) return name;
    return "probability";
  }

  facts() {
    const { run, e } = this;
    const c = run.columns;
    const found = make("ul", "facts");
    const add = (name, text, className) => {
      const item = make("li", className);
      item.append(make("span", "soft", name + " "), make("b", "", text));
      found.append(item);
    };
    const outcome = run.outcome(e);
    add("outcome", outcome, "of-" + outcome.split(",")[0]);
    add("reward", figure(c.episode_reward[e], 2));
    add("tokens", String(c.episode_length[e]));
    add("windows", String(this.windows.length));
    add("when", run.when(e));
    if (!c.episode_is_heldout[e]) add("staleness", figure(c.episode_staleness[e], 1));
    add("episode", String(c.episode_id[e]));
    return found;
  }

  controls() {
    const found = make("div", "row controls");
    const select = (id, label, names, key) => {
      const box = make("select");
      box.id = id;
      for (const name of names) {
        const option = make("option", "", name ? QUANTITIES[name].label : "nothing");
        option.value = name;
        box.append(option);
      }
      box.value = this.chosenFor(key);
      box.addEventListener("change", () => {
        this.choice[key] = box.value;
        if (key === "shade") this.shade(); else this.draw();
      });
      const around = make("label", "", label + " ");
      around.append(box);
      found.append(around);
    };
    select("shade", "Shade by", ["", ...this.offered], "shade");
    select("curve-of", "Curve of", this.offered, "curve");
    this.legendBox = make("span");
    found.append(this.legendBox);
    this.hitBox = make("span", "hits");
    found.append(this.hitBox);
    return found;
  }

  curveBox() {
    this.curveElement = make("div", "curvebox");
    return this.curveElement;
  }

  draw() {
    if (this.curve) this.curve.close();
    const name = this.chosenFor("curve");
    this.curve = new Curve(name, this.numbersOf(name), this.windows, (index) => this.choose(index, true));
    const notes = [];
    if (name === "values") notes.push("Dots: the critic's value after the last token of a window. ");
    notes.push("Dashed lines: a window begins.");
    if (!this.offered.includes("advantages")) notes.push(" Of this response no values were recorded; record_episodes keeps some.");
    else if (!this.offered.includes("values")) notes.push(" There are no values without a critic.");
    this.curveElement.replaceChildren(this.curve.canvas, make("p", "soft note", notes.join("")));
    this.curve.mark(this.chosen);
  }

  body() {
    this.text = make("div", "text tokens");
    this.text.tabIndex = 0;
    this.text.setAttribute("aria-label", "Response; left and right walk over its tokens");
    this.text.addEventListener("pointerover", (event) => this.point(event, false));
    this.text.addEventListener("click", (event) => this.point(event, true));
    return this.text;
  }

  // Windows, and what lies between them: tokens of windows that were not kept.
  sections() {
    const found = [];
    let at = 0;
    for (const window of this.windows) {
      if (window.start > at) found.push({ start: at, stop: window.start, window: null });
      found.push({ start: window.start, stop: window.stop, window });
      at = window.stop;
    }
    const length = this.to - this.from;
    if (length > at) found.push({ start: at, stop: length, window: null });
    return found;
  }

  heading({ start, stop, window }) {
    const found = make("h4", window ? "window" : "window unknown");
    const tokens = `tokens ${start + 1} to ${stop}`;
    if (!window) {
      found.append(make("b", "", "not kept"), make("span", "soft", tokens + ": text alone is known"));
      return found;
    }
    found.append(make("b", "", "window " + (window.index + 1)), make("span", "soft", `iteration ${window.iteration}, ${tokens}`));
    if (Number.isFinite(window.boundary)) {
      found.append(make("span", "boundary", "boundary value " + figure(window.boundary, 3)));
    }
    return found;
  }

  async fill() {
    let begun = performance.now();
    for (const section of this.sections()) {
      const block = make("section", "block");
      block.append(this.heading(section));
      this.text.append(block);
      const line = make("p");
      block.append(line);
      // Bytes of one character may lie on both sides of a cut, so the pieces of a section are found together.
      const shown = this.run.shown(this.from + section.start, this.from + section.stop);
      for (let from = 0; from < shown.length; from += CHUNK) {
        const part = document.createDocumentFragment();
        for (let i = from; i < Math.min(shown.length, from + CHUNK); i++) {
          const index = section.start + i;
          const element = tokenElement(shown[i], index, !this.run.columns.token_sampled[this.from + index]);
          if (this.rewards.has(index)) element.classList.add("rewarded");
          this.spans[index] = element;
          this.paint(index);
          part.append(element);
        }
        line.append(part);
        if (performance.now() - begun > FRAME_MS) {
          await new Promise((resolve) => requestAnimationFrame(resolve));
          if (this.closed) return;
          begun = performance.now();
        }
      }
    }
    this.isFilled = true;
    this.find();
  }

  shade() {
    const name = this.chosenFor("shade");
    this.numbers = name ? this.numbersOf(name) : null;
    this.limits = name ? limits(name, this.numbers) : null;
    this.legendBox.replaceChildren(...(name ? [legend(name, this.limits)] : []));
    const turn = (this.turn = (this.turn || 0) + 1);
    const step = (from) => {
      if (this.closed || turn !== this.turn) return;
      const until = Math.min(this.spans.length, from + 2000);
      for (let i = from; i < until; i++) this.paint(i);
      if (until < this.spans.length) requestAnimationFrame(() => step(until));
    };
    step(0);
  }

  paint(index) {
    const element = this.spans[index];
    if (!element) return;
    const shade = this.numbers ? shadeOf(this.chosenFor("shade"), this.numbers[index], this.limits) : "";
    if (element.shade) element.classList.remove(element.shade);
    if (shade) element.classList.add(shade);
    element.shade = shade;
  }

  point(event, focus) {
    const index = event.target.tokenIndex;
    if (index !== undefined && (focus || event.pointerType === "mouse")) this.choose(index, false);
  }

  choose(index, scroll) {
    const element = this.spans[index];
    if (!element) return;
    if (this.chosen >= 0) this.spans[this.chosen].classList.remove("chosen");
    this.chosen = index;
    element.classList.add("chosen");
    if (scroll) element.scrollIntoView({ block: "center" });
    this.curve.mark(index);
    this.tell(index);
  }

  walk(step) { this.choose(Math.min(this.spans.length - 1, Math.max(0, this.chosen + step)), true); }

  walkWindow(step) {
    const starts = this.sections().map((section) => section.start);
    const here = starts.filter((start) => start <= Math.max(0, this.chosen)).length - 1;
    this.choose(starts[Math.min(starts.length - 1, Math.max(0, here + step))], true);
  }

  tell(index) {
    const { run } = this;
    const box = byId("token");
    const { one } = this.spans[index];
    const id = run.columns.piece_id[run.columns.piece[this.from + index]];
    const facts = [`token ${index + 1} of ${this.spans.length}`, `id ${id}`];
    for (const [name, { label, digits }] of Object.entries(QUANTITIES)) {
      if (!run.has(name)) continue;
      const number = this.numbersOf(name)[index];
      if (Number.isFinite(number)) facts.push(`${label} ${figure(number, digits)}`);
    }
    const version = run.columns.token_version[this.from + index];
    if (version >= 0) facts.push(`version ${version}`);
    if (this.rewards.has(index)) facts.push(`reward ${figure(this.rewards.get(index), 3)}`);
    if (!run.columns.token_sampled[this.from + index]) facts.push("text of the environment");
    const bytes = one.bytes ? `bytes ${one.bytes}` : JSON.stringify(one.text);
    box.replaceChildren(make("code", "", bytes), make("span", "", facts.join(" · ")));
    box.hidden = false;
  }

  // Marks the searched words and goes to the first.
  find() {
    if (!this.words) return;
    const shown = this.run.shown(this.from, this.to);
    const starts = [];
    let text = "";
    for (const one of shown) { starts.push(text.length); text += one.text.toLowerCase(); }
    const hits = [];
    let token = 0;
    for (let at = text.indexOf(this.words); at >= 0; at = text.indexOf(this.words, at + this.words.length)) {
      while (token + 1 < starts.length && starts[token + 1] <= at) token++;
      hits.push(token);
      for (let i = token; i < starts.length && starts[i] < at + this.words.length; i++) this.spans[i].classList.add("hit");
    }
    if (!hits.length) return;
    let place = 0;
    const button = make("button", "", "");
    button.type = "button";
    const show = () => {
      button.textContent = `Hit ${place + 1} of ${hits.length} ↓`;
      this.choose(hits[place], true);
    };
    button.addEventListener("click", () => { place = (place + 1) % hits.length; show(); });
    this.hitBox.replaceChildren(button);
    show();
  }
}
