// The tab "Background tasks": what runs, what has ended since you looked, and the rest.

import { clock, duration, make, now, put } from "./elements.js";
import { FINAL } from "./task_outputs.js";

const GLYPHS = { pending: "◌", running: "●", completed: "✓", failed: "✕", cancelled: "⊘", interrupted: "◐" };
const VERBS = { cancel: "Cancel", rerun: "Rerun", resume: "Resume" };
const LOOKED = "ipytaskpersist:looked";
const SURE_MS = 4000;

/** What can be done to a task. */
export function verbOf(task) {
  if (!FINAL.has(task.state)) return "cancel";
  return task.state === "interrupted" ? "resume" : "rerun";
}

export function titleOf(task) {
  return task.name || `task ${task.number}`;
}

/** What a task says of itself: why it failed, or its last line. */
function lineOf(task) {
  if (task.state === "failed" || task.state === "interrupted") return task.reason || task.last_line;
  return task.last_line || task.progress?.text || "";
}

/** How much of a task that runs is done, in percent, where that is known. */
function doneOf(task) {
  const fraction = FINAL.has(task.state) ? null : task.progress?.fraction ?? null;
  return fraction === null ? null : Math.round(100 * fraction);
}

function spokenOf(task) {
  const done = doneOf(task) === null ? [] : [`${doneOf(task)} %`];
  return [titleOf(task), `task ${task.number}`, task.state, ...done, lineOf(task)].filter(Boolean).join(", ");
}

export class Sidebar {
  constructor(root, page, here) {
    Object.assign(this, { root, page, here });
    this.rows = new Map();
    this.seenAt = 0;
    this.build();
  }

  build() {
    this.scope = make("select", { "aria-label": "Which tasks", onchange: () => this.draw() },
      make("option", { value: "here" }, "This notebook"), make("option", { value: "all", selected: true }, "All notebooks"));
    this.words = make("input", { type: "search", placeholder: "Search",
      "aria-label": "Search tasks", oninput: () => this.draw() });
    this.note = make("div", { class: "ipytps-note", role: "status" });
    this.list = make("div", { class: "ipytps-list", onkeydown: (event) => this.move(event) });
    this.root.append(make("div", { class: "ipytps-head" }, this.scope, this.words), this.note, this.list);
    this.sections = new Map(["Running", "Ended since you looked", "Earlier"].map((name) => {
      const list = make("ul", { "aria-label": name });
      const section = make("section", {}, make("h2", {}, name), list);
      this.list.append(section);
      return [name, { section, list }];
    }));
    this.none = make("p", { class: "ipytps-none" });
    this.list.append(this.none);
  }

  // What is listed.

  isListed(task) {
    const isHere = this.scope.value === "all" || task.path === this.here();
    const text = [task.id, task.name, task.state, task.notebook, task.source, lineOf(task)].join("\n").toLowerCase();
    return isHere && this.words.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  sectionOf(task) {
    if (!FINAL.has(task.state)) return "Running";
    return task.ended_at > this.looked ? "Ended since you looked" : "Earlier";
  }

  draw() {
    if (!this.isShown) return;
    const listed = [...this.page.tasks.values()].filter((task) => this.isListed(task));
    listed.sort((one, other) => FINAL.has(one.state) - FINAL.has(other.state) || other.created_at - one.created_at);
    const kept = new Set();
    for (const [name, { section, list }] of this.sections) {
      const rows = listed.filter((task) => this.sectionOf(task) === name).map((task) => this.rowOf(task));
      section.hidden = !rows.length;
      rows.forEach((row, index) => list.children[index] !== row && list.insertBefore(row, list.children[index] ?? null));
      rows.forEach((row) => kept.add(row.dataset.id));
    }
    for (const [id, { row }] of this.rows) if (!kept.has(id)) row.remove(this.rows.delete(id));
    const none = this.page.tasks.size ? "No task fits." : "No background tasks yet. %%background above a cell’s code starts one.";
    put(this.none, listed.length ? "" : none);
  }

  // One task.

  rowOf(task) {
    const parts = this.rows.get(task.id) ?? this.newRow(task);
    parts.task = task;
    parts.row.dataset.state = task.state;
    put(parts.glyph, GLYPHS[task.state]);
    put(parts.name, titleOf(task));
    put(parts.number, `#${task.number}`);
    put(parts.line, lineOf(task));
    put(parts.where, this.scope.value === "all" ? (task.notebook.split("/").at(-1) ?? "") : "");
    parts.go.title = spokenOf(task);
    parts.go.setAttribute("aria-label", spokenOf(task));
    parts.bar.hidden = doneOf(task) === null;
    parts.bar.style.setProperty("--done", `${doneOf(task)}%`);
    this.fillButton(parts, task);
    this.tickRow(parts);
    return parts.row;
  }

  newRow(task) {
    const part = (name, attributes = {}) => make("span", { class: `ipytps-${name}`, ...attributes });
    const parts = { glyph: part("glyph", { "aria-hidden": "true" }), name: part("name"), number: part("number"),
      time: part("time"), line: part("line"), where: part("where"), bar: part("bar") };
    parts.go = make("button", { type: "button", class: "ipytps-go", onclick: () => this.page.openTask(parts.task) },
      parts.glyph, parts.name, parts.number, parts.time, parts.bar, parts.line, parts.where);
    parts.act = make("button", { type: "button", class: "ipytps-act", onclick: () => this.act(parts) });
    parts.row = make("li", { "data-id": task.id }, parts.go, parts.act);
    this.rows.set(task.id, parts);
    return parts;
  }

  fillButton(parts, task) {
    const verb = verbOf(task);
    put(parts.act, parts.isSure ? "Sure?" : VERBS[verb]);
    parts.act.setAttribute("aria-label", `${VERBS[verb]} task ${task.number} ${task.name}`);
  }

  /** A cancelled task cannot be had back: that button is pressed twice. */
  async act(parts) {
    const { task } = parts;
    const verb = verbOf(task);
    clearTimeout(parts.timer);
    if (verb === "cancel" && !parts.isSure) {
      parts.isSure = true;
      parts.timer = setTimeout(() => this.fillButton(parts, parts.task, (parts.isSure = false)), SURE_MS);
      return this.fillButton(parts, task);
    }
    parts.isSure = false;
    parts.act.disabled = true;
    await this.page.server.post(`tasks/${encodeURIComponent(task.id)}/${verb}`)
      .then(({ said }) => put(this.note, said), ({ message }) => put(this.note, message));
    parts.act.disabled = false;
    this.fillButton(parts, parts.task);
  }

  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const rows = [...this.list.querySelectorAll(".ipytps-go")];
    const at = rows.indexOf(event.target.closest("li")?.querySelector(".ipytps-go"));
    rows[at + step]?.focus();
    event.preventDefault();
  }

  // What time brings.

  show() {
    this.isShown = true;
    // Whatever hides the tab for a moment only, it is the same look.
    if (now() - this.seenAt > 5) this.looked = Number(localStorage.getItem(LOOKED) ?? 0);
    this.draw();
    this.ticking = setInterval(() => this.tick(), 1000);
  }

  hide() {
    this.isShown = false;
    clearInterval(this.ticking);
  }

  tick() {
    this.rows.forEach((parts) => this.tickRow(parts));
    if (document.hidden) return;
    this.seenAt = now();
    localStorage.setItem(LOOKED, this.seenAt);
  }

  tickRow({ task, time }) {
    const from = task.started_at ?? task.created_at;
    const length = duration((task.ended_at ?? now()) - from);
    put(time, FINAL.has(task.state) && task.ended_at ? `${clock(task.ended_at)} · ${length}` : length);
  }
}
