// The page: opens the data, the list and one episode, and knows the keys.

const state = { e: -1, tab: "response", view: null };

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot decompress data; a newer one can");
  const run = new Run(tableOf(await unpacked(byId("data"))));
  const { facts } = run.header;
  const of = run.size === facts.recorded ? "" : `${run.size.toLocaleString("en")} of `;
  byId("facts").textContent = [
    of + counting(facts.recorded, "kept episode"),
    counting(run.columns.piece.length, "token"),
    counting(run.header.prompts.length, "prompt"),
  ].join(" · ");
  byId("conditions").open = window.innerWidth > 760;
  byId("app").hidden = false;
  const choice = {
    shade: run.has("advantages") ? "advantages" : "probability",
    curve: run.has("values") ? "values" : "probability",
  };
  const list = new EpisodeList(run, (e) => open(e, state.tab));

  function show(e, tab) {
    if (state.view) state.view.close();
    state.e = e;
    state.tab = tab;
    byId("nothing").hidden = true;
    byId("shown").hidden = false;
    document.body.classList.add("reading");
    const groups = { group: run.group(e), training: run.same(e) };
    for (const button of byId("tabs").children) {
      const name = button.dataset.tab;
      button.setAttribute("aria-selected", String(name === tab));
      if (groups[name]) button.textContent = `${name === "group" ? "Group" : "Over training"} (${groups[name].length})`;
    }
    const wanted = { choice, open, overTraining: tab === "training" };
    state.view = tab === "response" ? new ResponseView(run, e, choice, list.words) : new CompareView(run, e, groups[tab], wanted);
    byId("panel").replaceChildren(state.view.element);
    byId("detail").scrollTop = 0;
    list.mark(e);
  }

  function open(e, tab) {
    const target = `#${e}/${tab}`;
    if (location.hash === target) show(e, tab);
    else location.hash = target;
  }

  function follow() {
    const [, e, tab] = /^#(\d+)\/(response|group|training)$/.exec(location.hash) ?? [];
    if (e !== undefined && Number(e) < run.size) return show(Number(e), tab);
    document.body.classList.remove("reading");
    if (state.view) state.view.close();
    state.view = null;
    byId("shown").hidden = true;
    byId("nothing").hidden = false;
    return undefined;
  }

  byId("back").addEventListener("click", () => {
    location.hash = "";
    byId("list").focus({ preventScroll: true });
  });
  byId("tabs").addEventListener("click", (event) => {
    if (event.target.dataset.tab) open(state.e, event.target.dataset.tab);
  });
  byId("tabs").addEventListener("keydown", (event) => {
    const names = ["response", "group", "training"];
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.stopPropagation();
    const next = (names.indexOf(state.tab) + step + names.length) % names.length;
    open(state.e, names[next]);
    byId("tabs").children[next].focus();
  });
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => keys(event, list, open));
  byId("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    if (state.view && state.view.curve) state.view.curve.draw();
  });
  await list.apply();
  follow();
  document.documentElement.dataset.ready = "yes";
}

function keys(event, list) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (document.activeElement === byId("search")) byId("list").focus();
    else location.hash = "";
    return;
  }
  if (event.target.matches("input, select")) return;
  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: list.page, PageUp: -list.page, Home: -Infinity, End: Infinity };
  const isListed = document.activeElement === byId("list") || document.activeElement === document.body;
  if (event.key === "/") byId("search").focus();
  else if (isListed && event.key in steps) list.choose(Math.max(-1e9, Math.min(1e9, list.chosen + steps[event.key])));
  else if (isListed && event.key === "Enter" && list.chosen >= 0) list.open(list.chosen);
  else if (state.view && state.view.walk && event.key === "ArrowRight") state.view.walk(1);
  else if (state.view && state.view.walk && event.key === "ArrowLeft") state.view.walk(-1);
  else if (state.view && state.view.walk && event.key === "]") state.view.walkWindow(1);
  else if (state.view && state.view.walk && event.key === "[") state.view.walkWindow(-1);
  else return;
  event.preventDefault();
}

start().catch((error) => {
  byId("failure").textContent = `The page could not be read: ${error.message}`;
  byId("failure").hidden = false;
  document.documentElement.dataset.ready = "failed";
});
