// What one page follows by its one stream: the notebooks that are open, and the list of tasks.

import { cardsOf } from "./marks.js";
import { unfoldIn } from "./fold.js";
import { OpenNotebook } from "./notebook.js";
import { Pace } from "./pacing.js";
import { Server, Stream } from "./server.js";

const TASKS = 200; // in the list: those that run, and the newest of the others

export class Page {
  notebooks = new Map();
  tasks = new Map();
  pace = new Pace();
  changed = () => this.stream.restart();

  constructor(lab, app, tracker) {
    Object.assign(this, { app, tracker, isEqual: lab["@lumino/coreutils"].JSONExt.deepEqual });
    this.server = new Server(lab, app.serviceManager.serverSettings);
    this.listChanged = new lab["@lumino/signaling"].Signal(this);
    this.stream = new Stream(this.server, this);
    this.changed();
    unfoldIn(document, this.server);
  }

  async add(panel) {
    OpenNotebook.distrust(panel);
    await panel.context.ready;
    const sharing = panel.content.model.collaborative ? await import("./shared.js") : null;
    if (panel.isDisposed) return;
    const notebook = new OpenNotebook(panel, this, sharing);
    this.notebooks.set(panel.content, notebook);
    notebook.setLive(this.stream.isLive);
    panel.disposed.connect(() => {
      this.notebooks.delete(panel.content);
      notebook.dispose();
      this.changed();
    });
  }

  get running() {
    return [...this.tasks.values()].filter(({ is_live }) => is_live);
  }

  // The stream.

  wanted() {
    const notebooks = [...this.notebooks.values()];
    const seen = notebooks.map(({ tasksSeen }) => tasksSeen).filter((each) => each !== null);
    return {
      paths: notebooks.map(({ path }) => path),
      seen: seen.length ? Math.min(...seen) : null,
      follow: Object.fromEntries(notebooks.flatMap(({ followed }) => followed)),
      list: { limit: TASKS },
    };
  }

  receive({ edits, launched, tasks, changed, gone, ...message }) {
    for (const notebook of this.notebooks.values()) {
      if (edits) notebook.receive({ edits, ...message });
      else if (notebook.path === launched?.path) notebook.launched(launched.task);
    }
    if (!tasks && !changed) return;
    if (tasks) this.tasks.clear();
    gone?.forEach((id) => this.tasks.delete(id));
    (tasks ?? changed).forEach((task) => this.tasks.set(task.id, task));
    this.listChanged.emit();
  }

  /** Connected, after whatever was missed; or no more. */
  told(isLive) {
    document.body.classList.toggle("ipytaskpersist-live", isLive);
    this.notebooks.forEach((notebook) => notebook.setLive(isLive));
  }

  // What the sidebar needs.

  /** The notebook in view, if there is one. */
  get path() {
    return this.tracker.currentWidget?.context.localPath;
  }

  /** The kernel of a notebook that is open. */
  kernelOf(path) {
    return [...this.notebooks.values()].find((each) => each.path === path)?.kernel;
  }

  async open({ id, path, cell_id }) {
    const panel = path && (await this.app.commands.execute("docmanager:open", { path }));
    if (!panel?.content?.scrollToItem) return;
    await panel.context.ready;
    await panel.revealed;
    const cells = [...panel.content.model.cells];
    const shows = (cell) => cell.type === "code" && cardsOf(cell.outputs).includes(id);
    const index = cells.indexOf(cells.find(shows) ?? cells.find((cell) => cell.id === cell_id));
    if (index < 0) return;
    panel.content.activeCellIndex = index;
    await panel.content.scrollToItem(index, "smart");
    panel.content.activeCell.node.focus();
  }
}
