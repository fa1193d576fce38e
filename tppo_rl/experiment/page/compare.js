// Answers to one prompt: those of a group side by side, and all of them over the training.

const CARD_TOKENS = 400;
const CARDS = 24;
const SVG = "http://www.w3.org/2000/svg";

class CompareView {
  constructor(run, e, episodes, { choice, open, overTraining }) {
    this.run = run;
    this.choice = choice;
    this.element = make("article", "compare");
    this.closed = false;
    const ordered = [...episodes].sort((a, b) => run.columns.episode_iteration[a] - run.columns.episode_iteration[b]);
    this.element.append(make("p", "soft", this.summary(ordered, overTraining)), promptBox(run, e));
    if (overTraining && ordered.length > 1) this.element.append(this.history(ordered, e, open));
    const cards = make("div", "cards");
    this.element.append(cards);
    const more = make("button", "more");
    more.type = "button";
    let at = 0;
    const show = () => {
      const next = ordered.slice(at, at + CARDS);
      at += next.length;
      this.fill(cards, next, e, open);
      more.hidden = at >= ordered.length;
      more.textContent = `${ordered.length - at} more`;
    };
    more.addEventListener("click", show);
    this.element.append(more);
    show();
  }

  close() { this.closed = true; }

  summary(episodes, overTraining) {
    const c = this.run.columns;
    const rewards = episodes.map((other) => c.episode_reward[other]);
    const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
    const first = c.episode_iteration[episodes[0]];
    const last = c.episode_iteration[episodes[episodes.length - 1]];
    const when = first === last ? `of iteration ${first}` : `of iterations ${first} to ${last}`;
    const lonely = overTraining ? " The prompt was answered only once." : " There is no other answer of its group.";
    return `${counting(episodes.length, "kept answer")} ${when}, mean reward ${figure(mean, 2)}.${episodes.length === 1 ? lonely : ""}`;
  }

  async fill(cards, episodes, e, open) {
    for (const other of episodes) {
      cards.append(this.card(other, other === e, open));
      await pause();
      if (this.closed) return;
    }
  }

  card(e, isChosen, open) {
    const { run } = this;
    const c = run.columns;
    const card = make("section", isChosen ? "card chosen" : "card");
    const head = make("header");
    const outcome = run.outcome(e);
    head.append(
      make("b", "verdict of-" + outcome.split(",")[0], outcome),
      make("span", "soft", ` ${run.when(e)} · reward ${figure(c.episode_reward[e], 2)} · ${c.episode_length[e]} tokens `),
    );
    const button = make("button", "", "Open");
    button.type = "button";
    button.addEventListener("click", () => open(e, "response"));
    head.append(button);
    const body = make("div", "text tokens");
    const more = make("button", "");
    more.type = "button";
    const [from, to] = run.range(e);
    const shown = run.shown(from, to);
    const name = this.choice.shade;
    const numbers = name ? run.numbers(e, name) : null;
    const bounds = name ? limits(name, numbers) : null;
    let at = 0;
    const show = () => {
      const until = Math.min(shown.length, at + CARD_TOKENS);
      for (; at < until; at++) {
        const element = tokenElement(shown[at], at, !c.token_sampled[from + at]);
        const shade = name ? shadeOf(name, numbers[at], bounds) : "";
        if (shade) element.classList.add(shade);
        body.append(element);
      }
      more.textContent = counting(shown.length - at, "more token");
      if (at < shown.length) body.append(more);
      else more.remove();
    };
    more.addEventListener("click", show);
    show();
    card.append(head, body);
    return card;
  }

  // Rewards and lengths by iteration; a dot is an answer.
  history(episodes, e, open) {
    const c = this.run.columns;
    const box = make("div", "history");
    for (const [label, column, digits] of [["reward", c.episode_reward, 2], ["tokens", c.episode_length, 0]]) {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", "0 0 320 110");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", label + " of the answers by iteration");
      const numbers = episodes.map((other) => column[other]);
      const low = Math.min(0, ...numbers);
      const high = Math.max(...numbers, low + 1e-9);
      const first = c.episode_iteration[episodes[0]];
      const span = Math.max(1, c.episode_iteration[episodes[episodes.length - 1]] - first);
      const write = (text, x, y, anchor) => {
        const element = document.createElementNS(SVG, "text");
        for (const [key, value] of Object.entries({ x, y, "text-anchor": anchor })) element.setAttribute(key, value);
        element.textContent = text;
        svg.append(element);
      };
      write(label, 4, 12, "start");
      write(figure(high, digits), 36, 26, "end");
      write(figure(low, digits), 36, 92, "end");
      write("iteration " + first, 42, 107, "start");
      write(String(first + span), 312, 107, "end");
      episodes.forEach((other, place) => {
        const dot = document.createElementNS(SVG, "circle");
        dot.setAttribute("cx", String(46 + (260 * (c.episode_iteration[other] - first)) / span));
        dot.setAttribute("cy", String(88 - (66 * (numbers[place] - low)) / (high - low)));
        dot.setAttribute("r", other === e ? "6" : "4");
        dot.setAttribute("class", "of-" + this.run.outcome(other).split(",")[0]);
        dot.addEventListener("click", () => open(other, "response"));
        svg.append(dot);
      });
      box.append(svg);
    }
    return box;
  }
}
