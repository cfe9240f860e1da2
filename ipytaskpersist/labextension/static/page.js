// What one page follows by its one stream: the notebooks that are open, and the list of tasks.

import { cardsOf } from "./marks.js";
import { unfoldIn } from "./fold.js";
import { OpenNotebook } from "./notebook.js";
import { Pace } from "./pacing.js";
import { Server, Stream } from "./server.js";
import { FINAL } from "./task_outputs.js";

const TASKS = 200; // in the list: those that run, and the newest of the others

export class Page {
  constructor(lab, app, tracker) {
    Object.assign(this, { app, tracker });
    this.server = new Server(lab, app.serviceManager.serverSettings);
    this.pace = new Pace();
    this.isEqual = lab["@lumino/coreutils"].JSONExt.deepEqual;
    this.notebooks = new Map();
    this.tasks = new Map();
    this.listChanged = new lab["@lumino/signaling"].Signal(this);
    this.stream = new Stream(this.server, {
      wanted: () => this.wanted(),
      receive: (message) => this.receive(message),
      told: (isLive) => this.told(isLive),
    });
    this.changed = () => this.stream.restart();
    this.changed();
    unfoldIn(document, this.server);
  }

  async add(panel) {
    await panel.context.ready;
    if (panel.isDisposed) return;
    const notebook = new OpenNotebook(panel, this);
    this.notebooks.set(panel.content, notebook);
    notebook.setLive(this.stream.isLive);
    panel.disposed.connect(() => {
      this.notebooks.delete(panel.content);
      notebook.dispose();
      this.changed();
    });
  }

  of(content) {
    return this.notebooks.get(content);
  }

  get running() {
    return [...this.tasks.values()].filter(({ state }) => !FINAL.has(state));
  }

  // The stream.

  wanted() {
    const notebooks = [...this.notebooks.values()];
    const seen = notebooks.map(({ tasksSeen }) => tasksSeen).filter((each) => each !== null);
    return {
      paths: notebooks.map(({ path }) => path),
      ...(seen.length ? { seen: Math.min(...seen) } : {}),
      follow: Object.fromEntries(notebooks.flatMap((notebook) => [...notebook.followed()])),
      list: { notebook: null, limit: TASKS },
    };
  }

  receive(message) {
    const { edits, launched } = message;
    if (!edits && !launched) this.receiveList(message);
    else for (const notebook of this.notebooks.values()) {
      if (edits) notebook.receive(message);
      else if (notebook.path === launched.path) notebook.launched(launched.task);
    }
  }

  receiveList({ tasks, changed, gone }) {
    if (tasks) this.tasks.clear();
    for (const id of gone ?? []) this.tasks.delete(id);
    for (const task of tasks ?? changed ?? []) this.tasks.set(task.id, task);
    this.listChanged.emit();
  }

  /** Connected, after whatever was missed; or no more. */
  told(isLive) {
    document.body.classList.toggle("ipytaskpersist-live", isLive);
    this.notebooks.forEach((notebook) => notebook.setLive(isLive));
  }

  // Going to a task.

  async openTask({ id, path, cell_id }) {
    const panel = path && (await this.app.commands.execute("docmanager:open", { path }));
    if (!panel?.content?.scrollToItem) return;
    await panel.context.ready;
    await panel.revealed;
    const cells = [...panel.content.model.cells];
    const shows = (cell) => cell.type === "code" && cardsOf(cell.outputs).includes(id);
    const marked = cells.findIndex(shows);
    const index = marked < 0 ? cells.findIndex((cell) => cell.id === cell_id) : marked;
    if (index < 0) return;
    panel.content.activeCellIndex = index;
    await panel.content.scrollToItem(index, "smart");
    panel.content.activeCell.node.focus();
  }
}
