// The live panel, which a kernel feeds, and the sidebar of JupyterLab, which the server feeds. What came
// from a task is only ever shown as text; the one exception is the selected task's output, which the
// kernel sends as HTML that it has made harmless itself.

const FILTERS = [
  ["All", () => true],
  ["Running", (task) => task.is_live],
  ["Failed", (task) => task.state === "failed" || task.state === "interrupted"],
  ["Ended", (task) => !task.is_live],
];
const COLUMNS = [
  ["number", "#", (task) => task.created],
  ["state", "State", (task) => ORDER.indexOf(task.state)],
  ["name", "Task", (task) => task.name.toLowerCase()],
  ["progress", "Progress", (task) => task.fraction ?? -1],
  ["time", "Time", (task, now) => elapsed(task, now) ?? -1],
  ["line", "Last line", (task) => task.line.toLowerCase()],
];
const LIVE_FIRST = { column: "", down: true };
const ORDER = ["running", "pending", "failed", "interrupted", "cancelled", "completed"];
const VERBS = { cancel: "Cancel", rerun: "Rerun", resume: "Resume", pause: "Pause", continue: "Continue" };
const SIGNS = { pause: "❚❚", continue: "▶\uFE0E" };
const ROWS_AT_ONCE = 150;
const QUIET_MS = 7000; // the kernel says every two seconds that it is there
const ANSWER_MS = 3000;
const PENDING_MS = 600;
const SURE_MS = 4000;
const HERE_MS = 20000;
const PACE_KNOWN_S = 2;
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function drawn(name, attributes = {}) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function set(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

function clock(seconds, options = { hour: "2-digit", minute: "2-digit", second: "2-digit" }) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23", ...options });
}

// A time of another day has its date. The browser's zone is the person's.
function moment(seconds) {
  const at = new Date(seconds * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short" };
  return at.toLocaleString([], isToday ? time : { year: "numeric", month: "short", day: "numeric", ...time });
}

function duration(seconds) {
  if (seconds === null) return "–";
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function elapsed(task, now) {
  return task.started === null ? null : Math.max(0, (task.ended ?? now) - task.started);
}

// Whether a task contains each word of a text.
function contains(task, text) {
  const { number, id, name, state, notebook, line, source = "" } = task;
  const whole = [number, id, name, state, notebook, line, source].join("\n").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => whole.includes(word));
}

// Tell the style sheet whether the page that the root stands in is dark.
function matchTheme(root) {
  const colour = getComputedStyle(root).backgroundColor.match(/[\d.]+/g)?.map(Number);
  if (colour) root.dataset.dark = String(0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 128);
}

// As long as the rest takes at the task's pace so far.
function timeLeft(task, now) {
  const taken = elapsed(task, now);
  if (task.state !== "running" || !task.fraction || task.fraction >= 1 || taken < PACE_KNOWN_S) return "";
  return `about ${duration((taken * (1 - task.fraction)) / task.fraction)} left`;
}

function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}

function title(task) {
  return task.name || `task ${task.number}`;
}

// The table of tasks, in sections: what it shows is a function of plain rows and of how they are viewed.
// What a person does with a row is given to `actions`.

class TaskList {
  constructor(sections, actions) {
    this.actions = actions; // open(task) by a click, enter(task) by a key, select(id), act(task, verb), isAsked(task), asksTwice(task), later()
    this.sort = LIVE_FIRST;
    this.limit = ROWS_AT_ONCE;
    this.sure = null; // the task whose button has been pressed once
    this.parts = new Map(); // of the rows that have been in sight, by the tasks' ids
    this.head = make("tr", { role: "row" }, ...COLUMNS.map(([name, text]) => make("th", { class: `ipytp-${name}`,
      scope: "col", role: "columnheader" }, make("button", { type: "button", onclick: () => this.sortBy(name) }, text))),
      make("th", { class: "ipytp-act", scope: "col", role: "columnheader" }, make("span", { class: "ipytp-unseen" }, "Action")));
    this.bodies = sections.map(bodyOf);
    const table = make("table", { "aria-label": "Background tasks", role: "grid",
      onkeydown: (event) => this.key(event), onclick: (event) => this.click(event) },
      make("thead", { role: "rowgroup" }, this.head), ...this.bodies);
    this.node = make("div", { class: "ipytp-list", onscroll: () => this.scrolled() }, table);
  }

  sortBy(name) {
    this.sort = { column: name, down: this.sort.column === name ? !this.sort.down : name === "number" };
    this.actions.later();
  }

  sorted(tasks, now) {
    const value = COLUMNS.find(([name]) => name === this.sort.column)?.[2] ?? ((task) => task.is_live);
    const sign = this.sort.down ? -1 : 1;
    const keyed = tasks.map((task) => [value(task, now), task]);
    keyed.sort(([a, one], [b, other]) => (a < b ? -sign : a > b ? sign : other.created - one.created));
    return keyed.map(([, task]) => task);
  }

  // Show the sorted tasks of each section. view: { selected, everywhere, isDisabled, now }
  show(sections, view) {
    this.view = view;
    const focused = this.node.ownerDocument.activeElement;
    const kept = new Set();
    let room = this.limit;
    for (const [index, tasks] of sections.entries()) {
      for (const task of tasks.slice(0, room)) kept.add(task.id);
      this.showSection(this.bodies[index], tasks.slice(0, room));
      room = Math.max(0, room - tasks.length);
    }
    this.hasMore = kept.size < sections.flat().length;
    for (const [id, { row }] of this.parts) {
      if (kept.has(id)) continue;
      row.remove();
      this.parts.delete(id);
    }
    this.mark(view.selected);
    if (focused && this.node.contains(focused)) focused.focus({ preventScroll: true });
    for (const [index, [name]] of COLUMNS.entries()) {
      const sorted = name === this.sort.column ? (this.sort.down ? "descending" : "ascending") : "none";
      set(this.head.children[index], "aria-sort", sorted);
    }
  }

  showSection(body, tasks) {
    body.hidden = !tasks.length;
    let next = body.querySelector("[data-id]");
    for (const task of tasks) {
      const parts = this.parts.get(task.id) ?? this.rowOf(task.id);
      this.fill(parts, task);
      if (parts.row === next) next = next.nextSibling;
      else body.insertBefore(parts.row, next);
    }
  }

  // One stop for Tab, and its buttons, however many rows there are: arrows go to the others.
  mark(selected) {
    for (const [id, { row, pause, button }] of this.parts) {
      set(row, "aria-selected", id === selected);
      for (const each of [row, pause, button]) set(each, "tabindex", id === selected ? 0 : -1);
    }
  }

  showTimes(now) {
    for (const { task, time } of this.parts.values()) {
      if (task?.state === "running") put(time, duration(elapsed(task, now)));
    }
  }

  rowOf(id) {
    const parts = { glyph: make("span", { class: "ipytp-glyph", "aria-hidden": "true" }),
      state: make("span", { class: "ipytp-word" }), name: make("bdi"),
      notebook: make("bdi", { class: "ipytp-notebook" }), bar: make("div"), line: make("bdi"),
      pause: make("button", { type: "button", class: "ipytp-pause" }), button: make("button", { type: "button" }) };
    const cell = (name, ...children) => make("td", { class: `ipytp-${name}`, role: "gridcell" }, ...children);
    parts.number = cell("number");
    parts.cell = cell("state", parts.glyph, " ", parts.state);
    parts.barBox = cell("progress", parts.bar);
    parts.time = cell("time-cell");
    parts.lineBox = cell("line", parts.line);
    parts.row = make("tr", { "data-id": id, role: "row", tabindex: "-1" }, parts.number, parts.cell,
      cell("name", parts.name, parts.notebook), parts.barBox, parts.time, parts.lineBox, cell("act", parts.pause, parts.button));
    this.parts.set(id, parts);
    return parts;
  }

  fill(parts, task) {
    parts.task = task;
    put(parts.number, String(task.number));
    put(parts.glyph, task.glyph);
    put(parts.state, task.state);
    set(parts.cell, "title", task.state);
    set(parts.row, "data-state", task.state);
    put(parts.name, title(task));
    if (parts.name.classList.contains("ipytp-nameless") === Boolean(task.name)) {
      parts.name.classList.toggle("ipytp-nameless", !task.name);
    }
    put(parts.notebook, this.view.everywhere ? task.notebook : "");
    put(parts.line, task.line);
    set(parts.lineBox, "title", task.line);
    this.fillBar(parts, task);
    put(parts.time, duration(elapsed(task, this.view.now)));
    this.fillButton(parts.button, task);
    this.fillPause(parts.pause, task);
  }

  fillBar({ bar, barBox }, task) {
    const live = task.state === "running" && task.counts;
    set(bar, "class", live ? (task.fraction === null ? "ipytp-bar ipytp-endless" : "ipytp-bar") : "");
    const percent = live && task.fraction !== null ? Math.round(task.fraction * 1000) / 10 : null;
    set(bar, "role", live ? "progressbar" : null);
    set(bar, "aria-label", live ? `Progress of task ${task.number}` : null);
    set(bar, "aria-valuenow", percent);
    set(bar, "style", live ? `--done: ${percent ?? 30}%` : null);
    set(barBox, "title", percent === null ? null : joined(`${percent} %`, timeLeft(task, this.view.now)));
  }

  fillButton(button, task) {
    const verb = VERBS[task.action] ?? "";
    set(button, "hidden", task.action ? null : "");
    this.enable(button, this.canAct(task));
    put(button, this.sure === task.id ? "Sure?" : this.isAsked(task) ? `${verb} …` : verb);
    set(button, "aria-label", `${verb} task ${task.number} ${task.name}`);
  }

  fillPause(button, task) {
    const verb = VERBS[task.pause] ?? "";
    set(button, "hidden", task.pause ? null : "");
    this.enable(button, this.canPause(task));
    put(button, SIGNS[task.pause] ?? "");
    set(button, "title", verb);
    set(button, "aria-label", `${verb} task ${task.number} ${task.name}`);
  }

  // A button that is disabled would lose the focus, and the keyboard its place in the list.
  enable(button, isEnabled) {
    set(button, "aria-disabled", isEnabled ? null : "true");
  }

  canPause(task) {
    return Boolean(task.pause) && !this.view.isDisabled && !this.actions.isAsked(task);
  }

  isAsked(task) {
    return this.actions.isAsked(task) || (task.action === "cancel" && task.asked);
  }

  canAct(task) {
    return Boolean(task.action) && !this.view.isDisabled && !this.isAsked(task);
  }

  // Do what a task's button says. What cannot be had back is asked for twice.
  press(task) {
    if (!this.canAct(task)) return;
    const isSure = !this.actions.asksTwice(task) || this.sure === task.id;
    this.askSure(isSure ? null : task.id);
    if (isSure) this.actions.act(task, task.action);
  }

  askSure(id) {
    clearTimeout(this.forgetting);
    if (id) this.forgetting = setTimeout(() => this.askSure(null), SURE_MS);
    this.sure = id;
    this.actions.later();
  }

  taskAt(event) {
    return this.parts.get(event.target.closest("tr")?.dataset.id)?.task;
  }

  click(event) {
    const task = this.taskAt(event);
    if (!task) return;
    const button = event.target.closest("button");
    if (button?.classList.contains("ipytp-pause")) {
      if (this.canPause(task)) this.actions.act(task, task.pause);
    } else if (button) this.press(task);
    else {
      event.target.closest("tr").focus();
      this.actions.open(task);
    }
    this.actions.select(task.id);
  }

  key(event) {
    const task = this.taskAt(event);
    if (!task || !event.target.matches("tr")) return;
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    const isEnter = event.key === "Enter" || event.key === " ";
    if (move) this.move(event.target, move);
    else if (isEnter) this.actions.enter(task);
    if (move || isEnter) event.preventDefault();
  }

  move(row, step) {
    const rows = [...this.node.querySelectorAll("tr[data-id]")];
    const there = rows[Math.min(Math.max(rows.indexOf(row) + step, 0), rows.length - 1)];
    this.actions.select(there.dataset.id);
    there.focus();
    there.scrollIntoView({ block: "nearest" });
  }

  // Show the first rows only: the tasks are others now.
  beginAnew() {
    this.limit = ROWS_AT_ONCE;
  }

  scrolled() {
    const box = this.node;
    if (!this.hasMore || box.scrollTop + box.clientHeight <= box.scrollHeight - 400) return;
    this.limit += ROWS_AT_ONCE;
    this.actions.later();
  }
}

// The rows of one section, below its heading if it has one.
function bodyOf(heading) {
  const body = make("tbody", { role: "rowgroup", "aria-label": heading || null });
  if (heading) {
    body.append(make("tr", { class: "ipytp-section", role: "row" },
      make("th", { scope: "rowgroup", role: "rowheader", colspan: COLUMNS.length + 1 }, heading)));
  }
  return body;
}

// What the panel and the sidebar share: a scope, a search, the list, and a line that says what was done.

class TaskView {
  constructor(root, sections, searched) {
    this.root = root;
    this.tasks = new Map();
    this.text = "";
    this.everywhere = false;
    this.selected = null;
    this.asked = new Map(); // requests without an answer yet, by their own names
    this.isStale = false;
    this.scope = make("select", { class: "ipytp-chip", "aria-label": "Which notebooks", onchange: () => this.setScope() },
      make("option", { value: "this" }, "This notebook"), make("option", { value: "all" }, "All notebooks"));
    this.search = make("input", { type: "search", placeholder: searched, "aria-label": searched,
      oninput: () => this.searchFor(this.search.value) });
    this.list = new TaskList(sections, this);
    this.empty = make("div", { class: "ipytp-none" });
    this.note = make("div", { class: "ipytp-note", role: "status" });
    root.classList.add("ipytp");
  }

  searchFor(text) {
    this.text = text.trim();
    this.list.beginAnew();
    this.later();
  }

  listed(isChosen) {
    return this.list.sorted([...this.tasks.values()].filter(isChosen), this.now());
  }

  isAsked(task) {
    return [...this.asked.values()].some((request) => request.task === task.id);
  }

  later() {
    this.drawing ??= requestAnimationFrame(() => { this.drawing = null; this.draw(); });
  }

  draw() {
    const sections = this.sections();
    const listed = sections.flat();
    if (!listed.some((task) => task.id === this.selected)) this.select(listed[0]?.id ?? null);
    this.list.show(sections, { selected: this.selected, everywhere: this.everywhere,
      isDisabled: this.isStale, now: this.now() });
    put(this.empty, this.emptiness(listed));
    return listed;
  }

  emptiness(listed) {
    if (!this.tasks.size) return "No background tasks yet. %%background above a cell’s code starts one.";
    return listed.length ? "" : "No task fits.";
  }

  say(text, isBad = false, isPending = false) {
    put(this.note, text);
    this.note.classList.toggle("ipytp-bad", isBad);
    clearTimeout(this.silence);
    if (!isBad && !isPending) this.silence = setTimeout(() => put(this.note, ""), 8000);
  }

  sayPending(name) {
    this.say(`${name}: will happen when the running cell ends`, false, true);
  }
}

class Panel extends TaskView {
  constructor(model, root) {
    super(root, [""], "Search names and output");
    this.model = model;
    this.view = Math.random().toString(36).slice(2);
    this.sessions = [];
    this.filter = "All";
    this.found = new Set();
    this.clockBehind = 0;
    this.heardAt = Date.now();
    this.hereAt = Date.now();
    this.askedAt = null;
    this.news = [];
    this.build();
    this.timeline = new Timeline(this, this.timelineBox);
    this.receive = (message) => this.take(message);
    model.on("msg:custom", this.receive);
    this.ticking = setInterval(() => this.tick(), 1000);
    this.letsSave = (event) => this.letSave(event);
    window.addEventListener("keydown", this.letsSave, true);
    this.sizes = new ResizeObserver(() => this.later());
    this.sizes.observe(root);
    const first = model.get("first");
    if (first) this.takeAll(JSON.parse(first));
    this.tell({ kind: "open" });
    this.tick();
  }

  remove() {
    clearInterval(this.ticking);
    clearTimeout(this.searching);
    this.sizes.disconnect();
    window.removeEventListener("keydown", this.letsSave, true);
    this.model.off("msg:custom", this.receive);
    this.tell({ kind: "close" });
  }

  tell(message) {
    try {
      this.model.send({ ...message, view: this.view });
    } catch (error) {
      // The page has no kernel any more; the missing heartbeat will say so.
    }
  }

  // What the kernel says.

  take(message) {
    this.heardAt = Date.now();
    this.askedAt = null;
    if (this.isStale) this.revive(message);
    const take = { all: this.takeAll, changes: this.takeChanges, output: this.takeOutput,
      answer: this.takeAnswer, found: this.takeFound }[message.kind];
    if (take) take.call(this, message);
    if (message.kind === "beat" && this.heardAt - this.hereAt > HERE_MS) {
      this.hereAt = this.heardAt;
      this.tell({ kind: "here" });
    }
  }

  takeAll(message) {
    this.clockBehind = Date.now() / 1000 - message.now;
    this.sessions = message.sessions;
    this.everywhere = message.everywhere;
    this.leftOut = message.left_out;
    this.tasks = new Map(message.tasks.map((task) => [task.id, task]));
    this.scope.value = message.everywhere ? "all" : "this";
    if (this.tasks.has(this.selected)) this.select(this.selected, true);
    this.timeline.pack();
    this.later();
  }

  takeChanges(message) {
    this.clockBehind = Date.now() / 1000 - message.now;
    for (const id of message.gone) this.tasks.delete(id);
    let repack = message.gone.length > 0;
    for (const task of message.tasks) {
      const before = this.tasks.get(task.id);
      repack ||= before?.started !== task.started || before?.ended !== task.ended;
      this.tasks.set(task.id, task);
      if (before?.is_live && !task.is_live) this.ended(task);
    }
    if (repack) this.timeline.pack();
    this.later();
  }

  takeOutput(message) {
    if (message.task !== this.selected || message.view !== this.view) return;
    const box = this.output;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (message.anew) this.lines.replaceChildren();
    if (message.add) {
      for (let gone = message.drop; gone > 0; gone--) this.lines.firstChild?.remove();
      while (this.lines.childNodes.length > message.keep) this.lines.lastChild.remove();
      for (const piece of message.add) {
        const safe = document.createElement("template");
        safe.innerHTML = piece; // made harmless by the kernel
        this.lines.append(safe.content.firstElementChild ?? make("div"));
      }
      put(this.above, message.above ? `${message.above} not shown · %bg_output ` +
        `${this.reference()} shows all` : "");
    }
    this.isRead = true;
    this.showEmptiness();
    if (message.facts) {
      this.facts.replaceChildren(...message.facts.flatMap(([name, value]) => {
        const text = typeof value === "number" ? moment(value) : value;
        return [make("dt", {}, name), make("dd", { title: text }, make("bdi", {}, text))];
      }));
    }
    if (atEnd || message.anew) box.scrollTop = box.scrollHeight;
  }

  takeAnswer(message) {
    const request = this.asked.get(message.ask);
    if (!request) return;
    this.asked.delete(message.ask);
    clearTimeout(request.timer);
    this.say(message.text, !message.ok);
    this.clearButton.disabled = this.isStale;
    this.draw();
  }

  takeFound(message) {
    if (message.text !== this.text) return;
    this.found = new Set(message.tasks);
    if (message.problem) this.say(message.problem, true);
    this.later();
  }

  ended(task) {
    this.news.push(`task ${task.number} ${task.name} ${task.state}`);
    if (this.notifying) {
      new Notification(`${task.glyph} ${task.state}: ${title(task)}`,
        { body: joined(duration(elapsed(task, this.now())), task.line), tag: task.id });
    }
  }

  // What the person does.

  act(task, verb) {
    this.ask({ verb, task: task.id, again: task.again, sure: this.asksTwice(task) }, `${VERBS[verb]} ${task.number}`);
  }

  asksTwice(task) {
    return this.everywhere && task.action === "cancel" && !task.own;
  }

  ask(request, name) {
    const ask = `${this.view}-${Date.now()}-${this.asked.size}`;
    const timer = setTimeout(() => this.sayPending(name), PENDING_MS);
    this.asked.set(ask, { ...request, timer });
    this.tell({ kind: "do", ask, ...request });
  }

  // Enter selects a task; once it is selected, Enter does what its button says.
  enter(task) {
    if (task.id === this.selected) this.list.press(task);
    else this.select(task.id);
  }

  open(task) {
    this.select(task.id);
  }

  select(id, again = false) {
    if (id === this.selected && !again) return;
    if (id !== this.selected) {
      this.selected = id;
      this.isRead = false;
      this.lines.replaceChildren();
      this.facts.replaceChildren();
      this.showEmptiness();
      put(this.above, "");
      this.list.mark(id);
    }
    this.tell({ kind: "select", task: id });
    this.later();
  }

  reference() {
    const task = this.tasks.get(this.selected);
    return task ? (this.everywhere ? task.id : task.number) : "";
  }

  setScope() {
    this.tell({ kind: "scope", everywhere: this.scope.value === "all" });
  }

  searchFor(text) {
    super.searchFor(text);
    this.found = new Set();
    clearTimeout(this.searching);
    if (this.text.length > 1) {
      this.searching = setTimeout(() => this.tell({ kind: "search", text: this.text }), 350);
    }
  }

  async toggleNotifying() {
    if (!this.notifying && "Notification" in window && Notification.permission !== "granted") {
      await Notification.requestPermission();
    }
    const allowed = "Notification" in window && Notification.permission === "granted";
    this.notifying = allowed && !this.notifying;
    this.bell.setAttribute("aria-pressed", String(this.notifying));
    if (!allowed) this.say("this browser does not allow notifications from this page", true);
  }

  // JupyterLab has shortcuts of its own for most keys, but saving is meant for the notebook.
  letSave(event) {
    const isSave = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";
    if (this.root.contains(event.target)) {
      this.root.toggleAttribute("data-lm-suppress-shortcuts", !isSave);
    }
  }

  key(event) {
    // Plain keys are ours, not the notebook's.
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    const typing = event.target.matches("input, select");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      this.search.focus();
    } else if (event.key === "Escape" && event.target === this.search) {
      this.search.value = "";
      this.searchFor("");
    }
  }

  // What is shown.

  build() {
    this.chips = FILTERS.map(([name]) => make("button", { class: "ipytp-chip", type: "button",
      "data-name": name, onclick: () => { this.filter = name; this.list.beginAnew(); this.later(); } }));
    this.clearButton = make("button", { class: "ipytp-chip", type: "button",
      title: "Take this notebook's ended tasks off the list. Deletes nothing.",
      onclick: () => { this.clearButton.disabled = true; this.ask({ verb: "clear" }, "Clear"); } },
      "Clear ended");
    this.bell = make("button", { class: "ipytp-chip", type: "button", "aria-pressed": "false",
      title: "Tell of every task that ends while this panel is open",
      onclick: () => this.toggleNotifying() }, "Notify me");
    this.banner = make("div", { class: "ipytp-banner", role: "alert" });
    this.timelineBox = make("div", { class: "ipytp-time" });
    this.above = make("div", { class: "ipytp-above" });
    this.lines = make("div", { class: "ipytp-lines" });
    this.nothing = make("div", { class: "ipytp-nothing" });
    this.output = make("div", { class: "ipytp-output", tabindex: "0", role: "region" },
      this.above, this.nothing, this.lines);
    this.facts = make("dl");
    this.heading = make("div", { class: "ipytp-heading", role: "heading", "aria-level": "3" });
    this.below = make("div", { class: "ipytp-detail", hidden: true }, this.heading, this.output, this.facts);
    this.spoken = make("div", { class: "ipytp-unseen", role: "status", "aria-live": "polite" });
    this.root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.replaceChildren(
      make("div", { class: "ipytp-head", role: "toolbar", "aria-label": "Tasks" },
        ...this.chips, this.scope, this.clearButton, this.bell, this.search),
      this.banner, this.timelineBox, this.list.node, this.empty, this.below, this.note, this.spoken);
  }

  // The kernel's clock; without the kernel it stands still.
  now() {
    return (this.isStale ? this.heardAt : Date.now()) / 1000 - this.clockBehind;
  }

  sections() {
    const chosen = FILTERS.find(([name]) => name === this.filter)[1];
    const has = (task) => this.found.has(task.id) || contains(task, this.text);
    return [this.listed((task) => chosen(task) && has(task))];
  }

  draw() {
    const listed = super.draw(); // what is shown below is always of a task in the list
    for (const [index, [name, chosen]] of FILTERS.entries()) {
      let count = 0;
      for (const task of this.tasks.values()) count += chosen(task);
      put(this.chips[index], `${name} ${count.toLocaleString()}`);
      set(this.chips[index], "aria-pressed", name === this.filter);
    }
    this.drawHeading();
    this.timeline.draw(listed);
  }

  drawHeading() {
    const task = this.tasks.get(this.selected);
    this.below.hidden = !task;
    if (!task) return;
    const parts = [task.state, duration(elapsed(task, this.now()))];
    if (task.counts) parts.push(task.fraction === null ? "" : `${Math.floor(task.fraction * 100)} %`);
    parts.push(timeLeft(task, this.now()));
    const glyph = make("span", { class: "ipytp-glyph", "aria-hidden": "true" }, task.glyph);
    const name = make("b", {}, make("bdi", {}, title(task)));
    const said = `#${this.reference()} ${title(task)} ${joined(...parts)}`;
    if (this.heading.dataset.said !== said) {
      this.heading.dataset.said = said;
      this.heading.dataset.state = task.state;
      this.heading.replaceChildren(glyph, " ", name, make("span", {}, `#${this.reference()}`),
        make("span", { class: "ipytp-measures" }, joined(...parts)));
    }
    set(this.output, "aria-label", `Output of task ${this.reference()} ${task.name}`);
    this.showEmptiness();
  }

  // A task that has ended will print nothing more.
  showEmptiness() {
    const task = this.tasks.get(this.selected);
    const isEmpty = this.isRead && !this.lines.childNodes.length;
    put(this.nothing, !isEmpty || !task ? "" : task.is_live ? "no output yet" : "no output");
  }

  emptiness(listed) {
    const earlier = this.leftOut && listed.length;
    return earlier ? `${this.leftOut.toLocaleString()} earlier tasks are not listed; %bg_list --limit N shows them` :
      super.emptiness(listed);
  }

  // What time brings.

  tick() {
    if (!this.isStale) {
      this.list.showTimes(this.now());
      this.drawHeading();
      if (this.timeline.isMoving()) this.later();
    }
    if (this.news.length) {
      const told = this.news.splice(0);
      put(this.spoken, told.length > 3 ? `${told.length} tasks have ended` : told.join(", "));
    }
    matchTheme(this.root);
    this.checkKernel();
  }

  checkKernel() {
    const now = Date.now();
    if (this.isStale || now - this.heardAt < QUIET_MS) return;
    if (this.askedAt === null) {
      this.askedAt = now; // a computer that slept has missed heartbeats, too
      this.tell({ kind: "open" });
    } else if (now - this.askedAt > ANSWER_MS) this.stale();
  }

  stale() {
    this.isStale = true;
    this.root.classList.add("ipytp-stale");
    put(this.banner, `The kernel that fed this panel is gone (last heard ${clock(this.heardAt / 1000)}). ` +
      "Run %bg_panel again.");
    for (const { timer } of this.asked.values()) clearTimeout(timer);
    this.asked.clear();
    this.setDisabled();
  }

  revive(message) {
    this.isStale = false;
    this.root.classList.remove("ipytp-stale");
    put(this.banner, "");
    this.setDisabled();
    if (message.kind !== "all") this.tell({ kind: "open" });
  }

  setDisabled() {
    for (const each of [this.clearButton, this.scope]) each.disabled = this.isStale;
    this.draw();
  }
}

// Who ran when.

const STEPS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
  172800, 604800, 2592000];
const LANES = 12;

const HATCHED = new Map([["failed", 45], ["interrupted", -45]]); // told apart without their colour

// The patterns with which bars are filled; each panel of a page has its own.
function hatches(view) {
  const made = drawn("defs");
  for (const [state, turn] of HATCHED) {
    const pattern = drawn("pattern", { id: `ipytp-${state}-${view}`, width: 5, height: 5,
      patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})` });
    pattern.append(drawn("rect", { width: 5, height: 5, class: "ipytp-hatch-ground", "data-state": state }),
      drawn("rect", { width: 2.5, height: 5, "data-state": state }));
    made.append(pattern);
  }
  return made;
}

class Timeline {
  constructor(panel, box) {
    this.panel = panel;
    this.box = box;
    this.range = null;
    this.lanes = new Map();
    this.laneCount = 1;
    this.svg = drawn("svg", { role: "img", "aria-label": "When the tasks ran" });
    this.grid = drawn("g");
    this.marks = drawn("g");
    this.bars = new Map(ORDER.map((state) => [state, drawn("path", { "data-state": state })]));
    for (const state of HATCHED.keys()) {
      this.bars.get(state).style.fill = `url(#ipytp-${state}-${panel.view})`;
    }
    this.chosen = drawn("path", { class: "ipytp-chosen" });
    this.band = drawn("rect", { class: "ipytp-band", y: 0, height: "100%" });
    this.svg.append(hatches(this.panel.view), this.grid, ...this.bars.values(), this.chosen, this.marks, this.band);
    this.tip = make("div", { class: "ipytp-tip", hidden: true });
    const button = (text, label, act) => make("button", { type: "button", "aria-label": label,
      title: label, onclick: act }, text);
    this.reset = button("↺", "Show all of the time", () => this.zoomTo(null));
    box.append(this.svg, this.tip, make("div", { class: "ipytp-zoom" },
      button("−", "Show more time", () => this.zoom(2)), button("+", "Show less time", () => this.zoom(0.5)),
      this.reset));
    this.svg.addEventListener("pointerdown", (event) => this.begin(event));
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerup", (event) => this.end(event));
    this.svg.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.svg.addEventListener("dblclick", () => this.zoomTo(null));
  }

  pack() {
    const tasks = [...this.panel.tasks.values()].filter((task) => task.started !== null || task.ended !== null);
    tasks.sort((a, b) => begin(a) - begin(b));
    const ends = [];
    this.lanes.clear();
    for (const task of tasks) {
      let lane = ends.findIndex((end) => end <= begin(task));
      if (lane < 0) lane = ends.length < LANES ? ends.length : ends.indexOf(Math.min(...ends));
      ends[lane] = task.ended ?? Infinity;
      this.lanes.set(task.id, lane);
    }
    this.laneCount = Math.max(1, ends.length);
  }

  isMoving() {
    const live = [...this.panel.tasks.values()].some((task) => task.state === "running");
    return live && (this.range === null || this.range[1] > this.panel.now());
  }

  whole(tasks) {
    let first = Infinity;
    let last = -Infinity;
    for (const task of tasks) {
      first = Math.min(first, begin(task));
      last = Math.max(last, task.ended ?? this.panel.now());
    }
    if (first === Infinity) [first, last] = [this.panel.now() - 60, this.panel.now()];
    const span = Math.max(last - first, 20);
    return [first - span * 0.02, first + span * 1.03];
  }

  draw(listed) {
    const tasks = listed.filter((task) => this.lanes.has(task.id));
    this.tasks = tasks;
    this.box.hidden = !this.panel.tasks.size;
    this.width = this.box.clientWidth;
    if (!this.width) return;
    const [from, to] = (this.current = this.range ?? this.whole(tasks));
    this.reset.disabled = this.range === null;
    this.scale = this.width / (to - from);
    this.step = Math.min(14, Math.floor(56 / this.laneCount) || 1);
    // Round corners are drawn by a stroke, for which thin bars have no room.
    this.round = this.step > 7 ? 1.5 : 0;
    this.thick = this.round ? Math.min(9, this.step - 3) - 2 * this.round : this.step - 1;
    this.svg.style.setProperty("--round", `${2 * this.round}px`);
    const paths = new Map(ORDER.map((state) => [state, ""]));
    for (const task of tasks) {
      const bar = this.barOf(task);
      if (bar) paths.set(task.state, paths.get(task.state) + bar);
    }
    for (const [state, path] of this.bars) path.setAttribute("d", paths.get(state));
    const chosen = this.panel.tasks.get(this.panel.selected);
    this.chosen.setAttribute("d", (chosen && this.lanes.has(chosen.id) && this.barOf(chosen)) || "");
    this.drawAxis(from, to);
    this.drawSessions(from, to);
  }

  x(at) {
    return (at - this.current[0]) * this.scale;
  }

  barOf(task) {
    const left = Math.max(-5, this.x(begin(task)));
    const right = Math.min(this.width + 5, Math.max(this.x(task.ended ?? this.panel.now()), left + 3));
    if (right < 0 || left > this.width) return "";
    const y = 5 + this.round + this.lanes.get(task.id) * this.step;
    return `M${left.toFixed(1)} ${y}H${right.toFixed(1)}v${this.thick}H${left.toFixed(1)}z`;
  }

  drawAxis(from, to) {
    const step = STEPS.find((each) => each * this.scale > 90) ?? STEPS.at(-1);
    const shift = new Date(from * 1000).getTimezoneOffset() * 60;
    const pieces = [];
    for (let at = Math.ceil((from - shift) / step) * step + shift; at < to; at += step) {
      const x = this.x(at).toFixed(1);
      const label = drawn("text", { x: Math.min(Math.max(Number(x), 22), this.width - 22), y: 76 });
      label.textContent = this.label(at, step);
      pieces.push(drawn("path", { d: `M${x} 0V64` }), label);
    }
    this.grid.replaceChildren(...pieces);
  }

  label(at, step) {
    const date = new Date(at * 1000);
    const isMidnight = date.getHours() === 0 && date.getMinutes() === 0;
    if (step >= 86400 || (isMidnight && step >= 1800)) {
      return date.toLocaleDateString([], { day: "numeric", month: "short" });
    }
    return clock(at, { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}) });
  }

  drawSessions(from, to) {
    this.ends = this.panel.sessions.filter(({ at }) => at > from && at < to);
    this.marks.replaceChildren(...this.ends.map(({ at }) => drawn("path", { d: `M${this.x(at).toFixed(1)} 0V64` })));
  }

  // The pointer.

  at(event) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return { x, y, time: this.current[0] + x / this.scale };
  }

  under({ x, y }) {
    const lane = Math.floor((y - 4) / this.step);
    return this.tasks.findLast((task) => this.lanes.get(task.id) === lane &&
      this.x(begin(task)) <= x + 3 && this.x(task.ended ?? this.panel.now()) >= x - 3);
  }

  begin(event) {
    if (event.button !== 0) return;
    this.dragged = this.at(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.current || !this.tasks) return;
    const here = this.at(event);
    if (this.dragged) {
      this.band.setAttribute("x", Math.min(here.x, this.dragged.x));
      this.band.setAttribute("width", Math.abs(here.x - this.dragged.x));
      return;
    }
    const task = this.under(here);
    const end = this.ends.find(({ at }) => Math.abs(this.x(at) - here.x) < 4);
    this.tip.hidden = !task && !end;
    put(this.tip, task ? `${task.number} ${task.name} · ${task.state} · ${clock(begin(task))} · ` +
      duration(elapsed(task, this.panel.now())) : end ? `${end.why} ${clock(end.at)}` : "");
    this.tip.style.left = `${Math.min(here.x + 10, this.width - this.tip.offsetWidth - 4)}px`;
    this.svg.style.cursor = task ? "pointer" : "";
  }

  end(event) {
    const from = this.dragged;
    this.dragged = null;
    this.band.setAttribute("width", 0);
    if (!from) return;
    const here = this.at(event);
    if (Math.abs(here.x - from.x) > 6) this.zoomTo([from.time, here.time].sort((a, b) => a - b));
    else {
      const task = this.under(here);
      if (task) this.panel.select(task.id);
    }
  }

  zoom(factor) {
    const [from, to] = this.current;
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    this.zoomTo([middle - half, middle + half]);
  }

  zoomTo(range) {
    this.range = range && range[1] - range[0] > 1 ? range : range && this.range;
    this.panel.later();
  }
}

function begin(task) {
  return task.started ?? task.created;
}

// The sidebar. Its page has the tasks, the server and the kernels, and goes to the cell of a task.

const LOOKED = "ipytaskpersist:looked";

export class Sidebar extends TaskView {
  constructor(root, page) {
    super(root, ["Running", "Ended since you looked", "Earlier"], "Search tasks");
    Object.assign(this, { page, tasks: page.tasks, seenAt: 0 });
    this.scope.value = "all";
    this.everywhere = true;
    root.classList.add("ipytp-sidebar");
    root.replaceChildren(make("div", { class: "ipytp-head" }, this.scope, this.search),
      this.note, this.list.node, this.empty);
  }

  now() {
    return Date.now() / 1000;
  }

  setScope() {
    this.everywhere = this.scope.value === "all";
    this.later();
  }

  sections() {
    const here = this.page.path;
    const listed = this.listed((task) => (this.everywhere || task.path === here) && contains(task, this.text));
    const isNew = (task) => !task.is_live && task.ended > this.looked;
    return [listed.filter((task) => task.is_live), listed.filter(isNew),
      listed.filter((task) => !task.is_live && !isNew(task))];
  }

  open(task) {
    this.page.open(task);
  }

  enter(task) {
    this.page.open(task);
  }

  // Tab goes to the buttons of the chosen task at once, however soon it is pressed.
  select(id) {
    this.selected = id;
    this.list.mark(id);
    this.later();
  }

  asksTwice(task) {
    return task.action === "cancel";
  }

  async act(task, verb) {
    this.asked.set(task.id, { task: task.id });
    try {
      this.say(await this.done(task, verb));
    } catch ({ message }) {
      this.say(message, true);
    }
    this.asked.delete(task.id);
    this.later();
  }

  // What a command says that does it. Only a notebook's kernel can run its threads again.
  async done({ id, number, kind, path, notebook }, verb) {
    if (kind !== "thread" || verb === "cancel") return this.page.server.act(id, verb);
    const kernel = this.page.kernelOf(path);
    if (kernel?.status === "busy") this.sayPending(`${VERBS[verb]} ${number}`);
    // A kernel that has just been shut down gives no answer.
    const said = kernel && (await saidBy(kernel, `%bg_${verb} ${id}`).catch(() => undefined));
    if (said === undefined || said === null) {
      throw new Error(`task ${number} runs in its notebook's kernel: open ${notebook}, then ${verb} it there`);
    }
    return said || `task ${number} runs again in ${path}`;
  }

  show() {
    // Whatever hides the tab for a moment only, it is the same look.
    if (this.now() - this.seenAt > 5) this.looked = Number(localStorage.getItem(LOOKED) ?? 0);
    this.ticking = setInterval(() => this.tick(), 1000);
    this.tick();
    this.later();
  }

  hide() {
    clearInterval(this.ticking);
  }

  // For who came by the keyboard: the task that was chosen last, or the first.
  focus() {
    this.draw();
    const row = this.list.parts.get(this.selected)?.row ?? this.list.node.querySelector("tr[data-id]");
    (row ?? this.search).focus();
  }

  tick() {
    matchTheme(this.root);
    this.list.showTimes(this.now());
    if (document.hidden) return;
    this.seenAt = this.now();
    localStorage.setItem(LOOKED, this.seenAt);
  }
}

// What a line says in a kernel, or the error that it raises. What it displays is no cell's.
async function saidBy(kernel, line) {
  const load = 'get_ipython().extension_manager.load_extension("ipytaskpersist")';
  const future = kernel.requestExecute({ code: `${load}\n${line}`, store_history: false });
  const heard = [];
  future.onIOPub = ({ content: { text, ename, evalue } }) => {
    if (ename || text) heard.push(ename ? `${ename}: ${evalue}` : text);
  };
  await future.done;
  return heard.join("").trim();
}

// Beside the panel stands the list as it was, for who opens the notebook without its kernel.
function hideSnapshot(model) {
  const name = `.${model.get("snapshot_name")}`;
  const style = make("style", {}, `.jp-OutputArea-child:has(${name}), ${name} { display: none !important; }`);
  document.head.append(style);
  return style;
}

function render({ model, el }) {
  const snapshot = hideSnapshot(model);
  const panel = new Panel(model, el);
  return () => {
    snapshot.remove();
    panel.remove();
  };
}

export default { render };
