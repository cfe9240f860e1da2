// One open notebook: which of its cells show which tasks, and since when.

import { cardsOf, clearedOf, markOf, placeOf, setCleared } from "./marks.js";
import { keepInOrder } from "./shared.js";
import { TaskOutputs } from "./task_outputs.js";
import { Writer } from "./writer.js";

const GATHER_MS = 20;

export class OpenNotebook {
  constructor(panel, { server, pace, isEqual, changed }) {
    Object.assign(this, { panel, server, pace, isEqual, changed });
    this.shown = new Map(); // what each cell shows, by cell id and place
    this.seen = new Set(); // the cells whose outputs are watched
    this.asked = new Set(); // the cells to be asked for
    this.isWriting = false;
    this.tasksSeen = null; // the last task that there was when the cells were asked for
    this.context.pathChanged.connect(() => this.fill());
    this.model.cells.changed.connect(() => this.watch());
    this.writer = new Writer(this.model.collaborative ? this.model.sharedModel.awareness : null, () => this.drawAll());
    this.watch();
  }

  get context() {
    return this.panel.context;
  }

  get model() {
    return this.panel.content.model;
  }

  get path() {
    return this.context.localPath;
  }

  get isWriter() {
    return this.writer.isHere;
  }

  /** Whether what is new comes to this page. */
  setLive(isLive) {
    this.isLive = isLive;
    this.writer.setLive(isLive);
    if (isLive) this.fill();
  }

  *cells() {
    for (const cell of this.model?.cells ?? []) if (cell.type === "code") yield cell;
  }

  /** Watch the cells that are new, and fill them. */
  watch() {
    for (const cell of this.cells()) {
      if (this.seen.has(cell)) continue;
      this.seen.add(cell);
      if (this.model.collaborative) keepInOrder(cell, this.isEqual);
      cell.outputs.changed.connect((_area, change) => this.hear(cell, change));
      this.ask(cell);
    }
    for (const cell of this.seen) if (cell.isDisposed) this.seen.delete(cell);
  }

  /** Outputs have changed: by the kernel, by a person, or by another page of a shared document. */
  hear(cell, change) {
    if (this.isWriting || !change.newValues?.some(markOf)) return;
    for (const task of cardsOf(cell.outputs)) {
      const known = this.of(cell).find((each) => each.task.id === task);
      if (!known) this.ask(cell);
      // The kernel's card shows what stands below it once more. Without news, it is the newer one.
      else if (this.isLive) known.draw();
    }
  }

  of(cell) {
    return [...this.shown.values()].filter((each) => each.cell === cell);
  }

  /** Its outputs were cleared, or it is run: what it shows from now on is another matter. */
  forget(cell) {
    for (const [key, each] of this.shown) {
      if (each.cell !== cell) continue;
      this.drop(key, each);
      this.write(() => setCleared(cell, each.task.id));
    }
    this.changed();
  }

  drop(key, each) {
    this.pace.stop(each);
    this.shown.delete(key);
  }

  /** Fill all cells. */
  fill() {
    for (const cell of this.cells()) this.ask(cell);
  }

  /** A task was launched, maybe in another page: its cell shows it. */
  launched(task) {
    const cell = [...this.cells()].find(({ id }) => id === task.cell_id);
    if (!cell) this.fill();
    else if (!this.of(cell).some((each) => each.task.id === task.id)) this.ask(cell);
  }

  ask(cell) {
    this.asked.add(cell);
    this.timer ??= setTimeout(() => this.askNow(), GATHER_MS);
  }

  async askNow() {
    this.timer = null;
    const cells = [...this.asked].filter((cell) => !cell.isDisposed).flatMap(questions);
    this.asked.clear();
    const path = this.path;
    const question = cells.map(({ id, marked, source }) => ({ id, marked, source }));
    const answer = await this.server.post("notebook", { path, cells: question }).catch(() => null);
    if (!answer || this.panel.isDisposed) return;
    this.tasksSeen = answer.seen;
    for (const { id, cell } of cells) if (answer.cells[id]) this.show(id, cell, answer.cells[id]);
    this.changed();
  }

  show(id, cell, found) {
    if (cell.isDisposed || clearedOf(cell) === found.task.id || !placeOf(cell, found.task.id)) return;
    const each = new TaskOutputs(cell, found, this);
    for (const [key, known] of this.shown) {
      const isSame = known.cell === cell && known.task.id === found.task.id;
      if (isSame || key === id) this.drop(key, known);
    }
    this.shown.set(id, each);
    each.draw();
  }

  drawAll() {
    for (const each of this.shown.values()) each.draw();
  }

  /** What the stream has to bring: the position of each task that goes on. */
  *followed() {
    for (const { task, position, isFollowed } of this.shown.values()) {
      if (isFollowed) yield [task.id, position];
    }
  }

  receive(message) {
    for (const each of this.shown.values()) if (each.task.id === message.task.id) each.receive(message);
  }

  /** Write to the document. Looking at a notebook is no change of it that has to be saved. */
  write(change) {
    const model = this.model;
    const wasDirty = model.dirty;
    this.isWriting = true;
    this.writer.wrote();
    try {
      change();
    } finally {
      this.isWriting = false;
      if (!wasDirty && !model.collaborative) model.dirty = false;
    }
  }

  dispose() {
    clearTimeout(this.timer);
    this.writer.dispose();
    for (const each of this.shown.values()) this.pace.stop(each);
    this.shown.clear();
  }
}

/** What to ask for a cell: the task that it shows; of a cell with several cards, each of them. */
function questions(cell) {
  const source = cell.sharedModel.getSource();
  const cards = cardsOf(cell.outputs);
  if (cards.length < 2 || source.trimStart().startsWith("%%")) {
    return [{ cell, id: cell.id, marked: cards.at(-1) ?? null, source }];
  }
  return cards.map((marked, index) => ({ cell, id: `${cell.id}/${index}`, marked, source }));
}
