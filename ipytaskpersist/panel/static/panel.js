// The page of the live panel. What came from a task is only ever shown as text; the one exception is
// the selected task's output, which the kernel sends as HTML that it has made harmless itself.

const FINAL = new Set(["completed", "failed", "cancelled", "interrupted"]);
const FILTERS = [
  ["All", () => true],
  ["Running", (task) => !FINAL.has(task.state)],
  ["Failed", (task) => task.state === "failed" || task.state === "interrupted"],
  ["Ended", (task) => FINAL.has(task.state)],
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
const VERBS = { cancel: "Cancel", rerun: "Rerun", resume: "Resume" };
const ROWS_AT_ONCE = 150;
const QUIET_MS = 7000; // the kernel says every two seconds that it is there
const ANSWER_MS = 3000;
const PENDING_MS = 600;
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

// The table of tasks: what it shows is a function of plain rows and of how they are viewed, so that it
// can stand anywhere. What a person does with a row is given to `actions`.

class TaskList {
  constructor(actions) {
    this.actions = actions; // select(id), act(task), sortBy(column), more()
    this.parts = new Map(); // of the rows that have been in sight, by the tasks' ids
    this.head = make("tr", {}, ...COLUMNS.map(([name, text]) => make("th", { class: `ipytp-${name}`,
      scope: "col" }, make("button", { type: "button", onclick: () => actions.sortBy(name) }, text))),
      make("th", { class: "ipytp-act", scope: "col" }, make("span", { class: "ipytp-unseen" }, "Action")));
    this.body = make("tbody", { onkeydown: (event) => this.key(event), onclick: (event) => this.click(event) });
    this.node = make("div", { class: "ipytp-list", onscroll: () => this.scrolled() },
      make("table", { "aria-label": "Background tasks", role: "grid" }, make("thead", {}, this.head), this.body));
  }

  // view: { looks, selected, everywhere, isDisabled, asked (ids), sure (an id), now, sort }
  show(tasks, view) {
    const focused = this.node.ownerDocument.activeElement;
    let next = this.body.firstChild;
    for (const task of tasks) {
      const parts = this.parts.get(task.id) ?? this.rowOf(task.id);
      this.fill(parts, task, view);
      if (parts.row === next) next = next.nextSibling;
      else this.body.insertBefore(parts.row, next);
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      this.parts.delete(gone.dataset.id);
      gone.remove();
    }
    this.mark(view.selected);
    if (focused && this.body.contains(focused)) focused.focus({ preventScroll: true });
    for (const [index, [name]] of COLUMNS.entries()) {
      const sorted = name === view.sort.column ? (view.sort.down ? "descending" : "ascending") : "none";
      set(this.head.children[index], "aria-sort", sorted);
    }
  }

  // One stop for Tab, and its button, however many rows there are: arrows go to the others.
  mark(selected) {
    for (const [id, { row, button }] of this.parts) {
      set(row, "aria-selected", id === selected);
      for (const each of [row, button]) set(each, "tabindex", id === selected ? 0 : -1);
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
      notebook: make("bdi", { class: "ipytp-notebook" }), bar: make("div"), line: make("bdi") };
    parts.number = make("td", { class: "ipytp-number" });
    parts.cell = make("td", { class: "ipytp-state" }, parts.glyph, " ", parts.state);
    parts.barBox = make("td", { class: "ipytp-progress" }, parts.bar);
    parts.time = make("td", { class: "ipytp-time-cell" });
    parts.lineBox = make("td", { class: "ipytp-line" }, parts.line);
    parts.button = make("button", { type: "button" });
    parts.row = make("tr", { "data-id": id, tabindex: "-1" }, parts.number, parts.cell,
      make("td", { class: "ipytp-name" }, parts.name, parts.notebook), parts.barBox, parts.time,
      parts.lineBox, make("td", { class: "ipytp-act" }, parts.button));
    this.parts.set(id, parts);
    return parts;
  }

  fill(parts, task, view) {
    parts.task = task;
    put(parts.number, String(task.number));
    put(parts.glyph, view.looks[task.state] ?? "");
    put(parts.state, task.state);
    set(parts.cell, "title", task.state);
    set(parts.row, "data-state", task.state);
    put(parts.name, title(task));
    if (parts.name.classList.contains("ipytp-nameless") === Boolean(task.name)) {
      parts.name.classList.toggle("ipytp-nameless", !task.name);
    }
    put(parts.notebook, view.everywhere ? task.notebook : "");
    put(parts.line, task.line);
    set(parts.lineBox, "title", task.line);
    this.fillBar(parts, task, view.now);
    put(parts.time, duration(elapsed(task, view.now)));
    this.fillButton(parts.button, task, view);
  }

  fillBar({ bar, barBox }, task, now) {
    const live = task.state === "running" && task.counts;
    set(bar, "class", live ? (task.fraction === null ? "ipytp-bar ipytp-endless" : "ipytp-bar") : "");
    const percent = live && task.fraction !== null ? Math.round(task.fraction * 1000) / 10 : null;
    set(bar, "role", live ? "progressbar" : null);
    set(bar, "aria-label", live ? `Progress of task ${task.number}` : null);
    set(bar, "aria-valuenow", percent);
    set(bar, "style", live ? `--done: ${percent ?? 30}%` : null);
    set(barBox, "title", percent === null ? null : joined(`${percent} %`, timeLeft(task, now)));
  }

  fillButton(button, task, view) {
    const isAsked = view.asked.has(task.id) || (task.action === "cancel" && task.asked);
    const verb = VERBS[task.action] ?? "";
    set(button, "hidden", task.action ? null : "");
    set(button, "disabled", view.isDisabled || isAsked ? "" : null);
    put(button, view.sure === task.id ? "Sure?" : isAsked ? `${verb} …` : verb);
    set(button, "aria-label", `${verb} task ${task.number} ${task.name}`);
  }

  click(event) {
    const row = event.target.closest("tr");
    if (!row) return;
    if (event.target.closest("button")) this.actions.act(this.parts.get(row.dataset.id).task);
    else row.focus();
    this.actions.select(row.dataset.id);
  }

  key(event) {
    const row = event.target.closest("tr");
    if (!row || event.target !== row) return;
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (move) {
      event.preventDefault();
      const rows = [...this.body.children];
      const there = rows[Math.min(Math.max(rows.indexOf(row) + move, 0), rows.length - 1)];
      this.actions.select(there.dataset.id);
      there.focus();
      there.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (row.ariaSelected === "true") this.actions.act(this.parts.get(row.dataset.id).task);
      this.actions.select(row.dataset.id);
    }
  }

  scrolled() {
    const box = this.node;
    if (box.scrollTop + box.clientHeight > box.scrollHeight - 400) this.actions.more();
  }
}

class Panel {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.view = Math.random().toString(36).slice(2);
    this.tasks = new Map();
    this.looks = {};
    this.sessions = [];
    this.filter = "All";
    this.text = "";
    this.found = new Set();
    this.sort = LIVE_FIRST;
    this.shown = ROWS_AT_ONCE;
    this.selected = null;
    this.everywhere = false;
    this.asked = new Map(); // requests without an answer yet, by their own names
    this.sure = null;
    this.clockBehind = 0;
    this.heardAt = Date.now();
    this.hereAt = Date.now();
    this.isStale = false;
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
    this.looks = message.looks;
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
      if (before && !FINAL.has(before.state) && FINAL.has(task.state)) this.ended(task);
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
      new Notification(`${this.looks[task.state]} ${task.state}: ${task.name || `task ${task.number}`}`,
        { body: joined(duration(elapsed(task, this.now())), task.line), tag: task.id });
    }
  }

  // What the person does.

  act(task) {
    const verb = task.action;
    if (!verb || this.isStale || this.isAsked(task)) return;
    const isElsewhere = this.everywhere && verb === "cancel" && !task.own;
    if (isElsewhere && this.sure !== task.id) {
      this.sure = task.id;
      this.draw();
      return;
    }
    this.sure = null;
    this.ask({ verb, task: task.id, again: task.again, sure: isElsewhere },
      `${VERBS[verb]} ${task.number}`);
    this.draw();
  }

  ask(request, name) {
    const ask = `${this.view}-${Date.now()}-${this.asked.size}`;
    const timer = setTimeout(() => this.say(
      `${name}: will happen when the running cell ends`, false, true), PENDING_MS);
    this.asked.set(ask, { ...request, timer });
    this.tell({ kind: "do", ask, ...request });
  }

  isAsked(task) {
    return [...this.asked.values()].some((request) => request.task === task.id);
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

  searchFor(text) {
    this.text = text.trim();
    this.found = new Set();
    this.shown = ROWS_AT_ONCE;
    clearTimeout(this.searching);
    if (this.text.length > 1) {
      this.searching = setTimeout(() => this.tell({ kind: "search", text: this.text }), 350);
    }
    this.later();
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
      "data-name": name, onclick: () => { this.filter = name; this.shown = ROWS_AT_ONCE; this.later(); } }));
    this.scope = make("select", { class: "ipytp-chip", "aria-label": "Which notebooks",
      onchange: () => this.tell({ kind: "scope", everywhere: this.scope.value === "all" }) },
      make("option", { value: "this" }, "This notebook"), make("option", { value: "all" }, "All notebooks"));
    this.clearButton = make("button", { class: "ipytp-chip", type: "button",
      title: "Take this notebook's ended tasks off the list. Deletes nothing.",
      onclick: () => { this.clearButton.disabled = true; this.ask({ verb: "clear" }, "Clear"); } },
      "Clear ended");
    this.bell = make("button", { class: "ipytp-chip", type: "button", "aria-pressed": "false",
      title: "Tell of every task that ends while this panel is open",
      onclick: () => this.toggleNotifying() }, "Notify me");
    this.search = make("input", { type: "search", placeholder: "Search names and output",
      "aria-label": "Search names and output", oninput: () => this.searchFor(this.search.value) });
    this.banner = make("div", { class: "ipytp-banner", role: "alert" });
    this.timelineBox = make("div", { class: "ipytp-time" });
    this.list = new TaskList({ select: (id) => this.select(id), act: (task) => this.act(task),
      sortBy: (name) => this.sortBy(name), more: () => this.showMore() });
    this.empty = make("div", { class: "ipytp-none" });
    this.above = make("div", { class: "ipytp-above" });
    this.lines = make("div", { class: "ipytp-lines" });
    this.nothing = make("div", { class: "ipytp-nothing" });
    this.output = make("div", { class: "ipytp-output", tabindex: "0", role: "region" },
      this.above, this.nothing, this.lines);
    this.facts = make("dl");
    this.heading = make("div", { class: "ipytp-heading", role: "heading", "aria-level": "3" });
    this.detail = this.output;
    this.below = make("div", { class: "ipytp-detail", hidden: true }, this.heading, this.output, this.facts);
    this.note = make("div", { class: "ipytp-note", role: "status" });
    this.spoken = make("div", { class: "ipytp-unseen", role: "status", "aria-live": "polite" });
    this.root.classList.add("ipytp");
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

  sortBy(name) {
    this.sort = { column: name, down: this.sort.column === name ? !this.sort.down : name === "number" };
    this.later();
  }

  listed() {
    const chosen = FILTERS.find(([name]) => name === this.filter)[1];
    const words = this.text.toLowerCase();
    const has = (task) => !words || this.found.has(task.id) || task.id.startsWith(words) ||
      `${task.number} ${task.name}\n${task.line}`.toLowerCase().includes(words);
    const now = this.now();
    const value = COLUMNS.find(([name]) => name === this.sort.column)?.[2] ?? ((task) => !FINAL.has(task.state));
    const sign = this.sort.down ? -1 : 1;
    const keyed = [];
    for (const task of this.tasks.values()) if (chosen(task) && has(task)) keyed.push([value(task, now), task]);
    keyed.sort(([a, one], [b, other]) => (a < b ? -sign : a > b ? sign : other.created - one.created));
    return keyed.map(([, task]) => task);
  }

  later() {
    this.drawing ??= requestAnimationFrame(() => { this.drawing = null; this.draw(); });
  }

  draw() {
    const listed = this.listed();
    // What is shown below is always of a task in the list.
    if (!listed.some((task) => task.id === this.selected)) this.select(listed[0]?.id ?? null);
    this.count = listed.length;
    this.list.show(listed.slice(0, this.shown), { looks: this.looks, selected: this.selected,
      everywhere: this.everywhere, isDisabled: this.isStale, sure: this.sure, now: this.now(), sort: this.sort,
      asked: new Set([...this.asked.values()].map((request) => request.task)) });
    for (const [index, [name, chosen]] of FILTERS.entries()) {
      let count = 0;
      for (const task of this.tasks.values()) count += chosen(task);
      put(this.chips[index], `${name} ${count.toLocaleString()}`);
      set(this.chips[index], "aria-pressed", name === this.filter);
    }
    put(this.empty, this.emptiness(listed));
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
    const glyph = make("span", { class: "ipytp-glyph", "aria-hidden": "true" }, this.looks[task.state] ?? "");
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
    put(this.nothing, !isEmpty || !task ? "" : FINAL.has(task.state) ? "no output" : "no output yet");
  }

  showMore() {
    if (this.shown >= this.count) return;
    this.shown += ROWS_AT_ONCE;
    this.later();
  }

  emptiness(listed) {
    if (!this.tasks.size) return "No background tasks yet. %%background above a cell’s code starts one.";
    if (!listed.length) return "No task fits.";
    return this.leftOut ? `${this.leftOut.toLocaleString()} earlier tasks are not listed; %bg_list --limit N shows them` : "";
  }

  say(text, isBad = false, isPending = false) {
    put(this.note, text);
    this.note.classList.toggle("ipytp-bad", isBad);
    clearTimeout(this.silence);
    if (!isBad && !isPending) this.silence = setTimeout(() => put(this.note, ""), 8000);
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
    this.checkTheme();
    this.checkKernel();
  }

  checkTheme() {
    const colour = getComputedStyle(this.root).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (colour) this.root.dataset.dark = String(0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 128);
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
