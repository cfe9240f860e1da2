// What one page follows by its one stream: the notebooks that are open, and the list of tasks.

import { cardsOf } from "./marks.js";
import { unfoldIn } from "./fold.js";
import { OpenNotebook } from "./notebook.js";
import { Pace } from "./pacing.js";
import { Server, Stream } from "./server.js";
import { FINAL } from "./task_outputs.js";

export class Page {
  constructor(lab, app, tracker) {
    Object.assign(this, { app, tracker });
    this.server = new Server(lab, app.serviceManager.serverSettings);
    this.pace = new Pace();
    this.isEqual = lab["@lumino/coreutils"].JSONExt.deepEqual;
    this.notebooks = new Map();
    this.tasks = new Map();
    this.listChanged = new lab["@lumino/signaling"].Signal(this);
    this.limit = 20;
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

  /** List as many tasks as a sidebar that is open shows, or those that a closed one counts. */
  list(isShown) {
    this.limit = isShown ? 200 : 20;
    this.changed();
  }

  // The stream.

  wanted() {
    const notebooks = [...this.notebooks.values()];
    return {
      paths: notebooks.map(({ path }) => path),
      follow: Object.fromEntries(notebooks.flatMap((notebook) => [...notebook.followed()])),
      list: { notebook: null, limit: this.limit },
    };
  }

  receive(message) {
    const { edits, launched } = message;
    if (!edits && !launched) return this.receiveList(message);
    for (const notebook of this.notebooks.values()) {
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

  async openTask(task) {
    if (!task.path) return;
    const panel = await this.app.commands.execute("docmanager:open", { path: task.path });
    if (!panel?.content?.scrollToItem) return;
    await panel.context.ready;
    await panel.revealed;
    const cells = [...panel.content.model.cells];
    const shows = (cell) => cell.type === "code" && cardsOf(cell.outputs).includes(task.id);
    const marked = cells.findIndex(shows);
    const index = marked < 0 ? cells.findIndex(({ id }) => id === task.cell_id) : marked;
    if (index < 0) return;
    panel.content.activeCellIndex = index;
    await panel.content.scrollToItem(index, "smart");
    panel.content.activeCell.node.focus();
  }
}
