// The list: conditions, order, and rows that are there only where one looks.

const ROW = 84;
const ROWS_AROUND = 6;
const PREVIEW_TOKENS = 40;
const SEARCH_MS = 10;

class EpisodeList {
  constructor(run, onOpen) {
    this.run = run;
    this.onOpen = onOpen;
    this.box = byId("list");
    this.space = byId("space");
    this.found = [];
    this.chosen = -1;
    this.descending = true;
    this.rows = [];
    this.turn = 0;
    this.box.addEventListener("scroll", () => this.later(), { passive: true });
    this.box.addEventListener("click", (event) => {
      const row = event.target.closest(".episode");
      if (row) this.open(row.place);
    });
    new ResizeObserver(() => this.draw()).observe(this.box);
    byId("estimated-label").hidden = !run.has("advantages");
    for (const id of ["outcome", "answers", "sort", "estimated"]) byId(id).addEventListener("change", () => this.apply());
    for (const id of ["search", "from", "to"]) {
      byId(id).addEventListener("input", () => {
        clearTimeout(this.waiting);
        this.waiting = setTimeout(() => this.apply(), 150);
      });
    }
    byId("direction").addEventListener("click", () => {
      this.descending = !this.descending;
      const button = byId("direction");
      button.textContent = this.descending ? "↓" : "↑";
      button.setAttribute("aria-label", this.descending ? "Largest first" : "Smallest first");
      this.apply();
    });
    byId("clear").addEventListener("click", () => {
      for (const id of ["search", "from", "to", "outcome", "answers"]) byId(id).value = "";
      byId("estimated").checked = false;
      this.apply();
    });
  }

  get words() { return byId("search").value.trim().toLowerCase(); }

  async apply() {
    const turn = ++this.turn;
    const { run, words } = this;
    const fits = this.conditions();
    const found = [];
    let begun = performance.now();
    for (let e = 0; e < run.size; e++) {
      if (fits(e) && (!words || run.matches(e, words))) found.push(e);
      if (performance.now() - begun > SEARCH_MS) {
        byId("count").textContent = `Searching … ${Math.round((100 * e) / run.size)} %`;
        await pause();
        if (turn !== this.turn) return;
        begun = performance.now();
      }
    }
    const open = this.chosen >= 0 ? this.found[this.chosen] : -1;
    this.found = this.sorted(found);
    this.chosen = this.found.indexOf(open);
    byId("count").textContent = `${this.found.length.toLocaleString("en")} of ${counting(run.size, "episode")}`;
    byId("none").hidden = this.found.length > 0;
    this.box.hidden = this.found.length === 0;
    this.space.style.height = this.found.length * ROW + "px";
    this.box.scrollTop = 0;
    this.draw();
  }

  conditions() {
    const { run } = this;
    const c = run.columns;
    const outcome = byId("outcome").value;
    const answers = byId("answers").value;
    const first = byId("from").value === "" ? -Infinity : Number(byId("from").value);
    const last = byId("to").value === "" ? Infinity : Number(byId("to").value);
    const outcomes = {
      "": () => true,
      right: (e) => c.episode_correct[e] === 1,
      wrong: (e) => c.episode_correct[e] === 0,
      finished: (e) => c.episode_end[e] !== 0,
      cut: (e) => c.episode_end[e] === 2,
      open: (e) => c.episode_end[e] === 0,
    };
    const prompts = {
      "": () => true,
      group: (e) => this.hasGroup(e),
      again: (e) => this.wasAskedAgain(e),
      training: (e) => !c.episode_is_heldout[e],
      heldout: (e) => Boolean(c.episode_is_heldout[e]),
    };
    const isEstimated = byId("estimated").checked;
    return (e) =>
      (!isEstimated || c.episode_is_estimated[e]) &&
      outcomes[outcome](e) && prompts[answers](e) && c.episode_iteration[e] >= first && c.episode_iteration[e] <= last;
  }

  hasGroup(e) {
    this.groups ??= counted(this.run.columns.episode_group);
    return this.groups.get(this.run.columns.episode_group[e]) > 1;
  }

  wasAskedAgain(e) {
    const { columns } = this.run;
    return this.run.same(e).some((other) => columns.episode_group[other] !== columns.episode_group[e]);
  }

  sorted(found) {
    const c = this.run.columns;
    const column = {
      iteration: c.episode_iteration, reward: c.episode_reward, length: c.episode_length,
      staleness: c.episode_staleness, prompt: c.episode_prompt,
    }[byId("sort").value];
    const sign = this.descending ? -1 : 1;
    const key = (e) => (Number.isFinite(column[e]) ? column[e] : -Infinity);
    return found.sort((a, b) => (key(a) === key(b) ? a - b : key(a) < key(b) ? -sign : sign));
  }

  later() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => { this.isDue = false; this.draw(); });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - ROWS_AROUND);
    const last = Math.min(this.found.length, first + Math.ceil(this.box.clientHeight / ROW) + 2 * ROWS_AROUND);
    const needed = Math.max(0, last - first);
    while (this.rows.length < needed) {
      const row = new Row();
      this.rows.push(row);
      this.space.append(row.element);
    }
    // A place keeps its row while it is in sight, so that scrolling changes only what comes in.
    const rows = this.rows.length;
    this.rows.forEach((row, i) => {
      const place = first + ((((i - first) % rows) + rows) % rows);
      row.element.hidden = place >= last;
      if (place < last) row.show(this.run, this.found[place], place, place === this.chosen, this.found.length);
    });
  }

  open(place) {
    this.choose(place);
    this.onOpen(this.found[place]);
  }

  choose(place) {
    if (!this.found.length) return;
    this.chosen = Math.min(this.found.length - 1, Math.max(0, place));
    const top = this.chosen * ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight;
    this.draw();
    this.box.setAttribute("aria-activedescendant", "row-" + this.chosen);
  }

  mark(e) {
    this.chosen = this.found.indexOf(e);
    this.draw();
  }

  get page() { return Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1); }
}

class Row {
  constructor() {
    this.element = make("div", "episode");
    this.element.setAttribute("role", "option");
    this.verdict = make("span", "verdict");
    this.name = make("span", "name");
    this.preview = make("span", "preview soft");
    this.meta = make("span", "meta soft");
    this.element.append(this.verdict, this.meta, this.name, this.preview);
    this.e = -1;
  }

  show(run, e, place, isChosen, total) {
    const { element } = this;
    if (this.place !== place) {
      this.place = element.place = place;
      element.id = "row-" + place;
      element.style.transform = `translateY(${place * ROW}px)`;
      element.setAttribute("aria-posinset", String(place + 1));
    }
    element.setAttribute("aria-setsize", String(total));
    element.classList.toggle("chosen", isChosen);
    element.setAttribute("aria-selected", String(isChosen));
    if (this.e === e) return;
    this.e = e;
    const c = run.columns;
    const outcome = run.outcome(e);
    this.verdict.className = "verdict of-" + outcome.split(",")[0];
    this.verdict.textContent = outcome;
    this.name.textContent = oneLine(run.name(e)) || "(empty prompt)";
    this.preview.textContent = oneLine(run.beginning(e, PREVIEW_TOKENS));
    this.meta.textContent =
      `${run.when(e)} · reward ${figure(c.episode_reward[e], 2)} · ${counting(c.episode_length[e], "token")}`;
  }
}

function counted(column) {
  const found = new Map();
  for (const key of column) found.set(key, (found.get(key) ?? 0) + 1);
  return found;
}
