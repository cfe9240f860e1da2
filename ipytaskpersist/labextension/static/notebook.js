// One open notebook: which of its cells show which tasks, and since when.

import { cardsOf, clearedOf, isWhole, markOf, placeOf, setCleared } from "./marks.js";
import { TaskOutputs } from "./task_outputs.js";

const GATHER_MS = 20;
const alone = () => ({ isHere: true, setLive() {}, soon: (_owner, work) => work(), dispose() {} });
const SAVED = "ipytaskpersist-saved"; // the cards are as they were saved, whatever they say

export class OpenNotebook {
  shown = new Map(); // what each cell shows, by cell id and place
  seen = new WeakSet(); // the cells whose outputs are watched
  asked = new Set(); // the cells to be asked for
  isWriting = false;
  tasksSeen = null; // the last task that there was when the cells were asked for

  /** `sharing` is the module for documents that pages share; null where this page has it alone. */
  constructor(panel, { server, pace, isEqual, changed }, sharing) {
    Object.assign(this, { panel, server, pace, isEqual, changed, sharing, model: panel.content.model });
    panel.context.pathChanged.connect(() => this.fill());
    this.model.cells.changed.connect(() => this.watch());
    this.writer = sharing ? new sharing.Writer(this.model.sharedModel.awareness, () => this.drawAll()) : alone();
    this.watch();
  }

  /** Have cards that were saved look old, until it is known what has become of their tasks. */
  static distrust(panel) {
    panel.addClass(SAVED);
  }

  *trust() {
    this.panel.removeClass(SAVED);
  }

  get path() {
    return this.panel.context.localPath;
  }

  /** The kernel that runs the cells, if there is one. */
  get kernel() {
    const kernel = this.panel.sessionContext.session?.kernel;
    return kernel?.connectionStatus === "connected" && kernel.status !== "dead" ? kernel : null;
  }

  /** Whether what is new comes to this page. */
  setLive(isLive) {
    this.isLive = isLive;
    this.writer.setLive(isLive);
    if (isLive) this.fill();
  }

  get cells() {
    return this.model.isDisposed ? [] : [...this.model.cells].filter(({ type }) => type === "code");
  }

  watch() {
    for (const cell of this.cells) {
      if (this.seen.has(cell)) continue;
      this.seen.add(cell);
      this.sharing?.keepInOrder(cell, this.isEqual);
      cell.outputs.changed.connect((_area, change) => this.hear(cell, change));
      this.ask(cell);
    }
  }

  /** Outputs have changed: by the kernel, by a person, or by another page of a shared document. */
  hear(cell, change) {
    if (this.isWriting || !change.newValues?.some(markOf)) return;
    this.panel.removeClass(SAVED); // the kernel's card is no saved one
    for (const task of cardsOf(cell.outputs)) {
      const [, known] = this.of(cell, task)[0] ?? [];
      if (!known) this.ask(cell);
      // The kernel's card shows what stands below it once more. Without news, it is the newer one.
      else if (this.isLive) known.draw();
    }
  }

  /** What a cell shows: all of it, or one task. */
  of(cell, task) {
    return [...this.shown].filter(([, each]) => each.cell === cell && (!task || each.task.id === task));
  }

  /** Its outputs were cleared, or it is run: what it shows from now on is another matter. */
  forget(cell) {
    for (const [key, each] of this.of(cell)) {
      this.drop(key);
      this.write(() => setCleared(cell, each.task.id));
    }
    this.changed();
  }

  drop(key) {
    this.pace.stop(this.shown.get(key));
    this.shown.delete(key);
  }

  fill() {
    this.cells.forEach((cell) => this.ask(cell));
  }

  /** A task was launched, maybe in another page: its cell shows it. */
  launched(task) {
    const cell = this.cells.find(({ id }) => id === task.cell_id);
    if (!cell) this.fill();
    else if (!this.of(cell, task.id).length) this.ask(cell);
  }

  ask(cell) {
    this.asked.add(cell);
    this.timer ??= setTimeout(() => this.pace.do(this.asked, () => this.askBetween()), GATHER_MS);
  }

  /** Ask when no cell is being drawn: until it is, it lacks the cards that are still to be put there. */
  *askBetween() {
    this.askNow();
  }

  async askNow() {
    this.timer = null;
    const questions = [...this.asked].filter((cell) => !cell.isDisposed).flatMap(questionsOf);
    this.asked.clear();
    const cells = questions.map(({ cell, ...question }) => question);
    const answer = await this.server.ask("notebook", { path: this.path, cells }).catch(() => null);
    if (!answer || this.panel.isDisposed) return;
    this.tasksSeen = answer.seen;
    for (const { id, cell } of questions) if (answer.cells[id]) this.show(id, cell, answer.cells[id]);
    this.soon(this, () => this.trust());
    this.changed();
  }

  show(id, cell, found) {
    const task = found.task.id;
    if (cell.isDisposed || clearedOf(cell) === task || !placeOf(cell, task, found.follows)) return;
    for (const [key] of this.of(cell, task)) this.drop(key);
    this.drop(id);
    this.shown.set(id, new TaskOutputs(cell, found, this));
    this.shown.get(id).draw();
  }

  drawAll() {
    this.shown.forEach((each) => each.draw());
  }

  /** Do what writes in steps, in the order in which it is asked for. */
  soon(owner, steps) {
    this.writer.soon(owner, () => this.pace.do(owner, steps));
  }

  /** What the stream has to bring: the position of each task that goes on. */
  get followed() {
    return [...this.shown.values()].filter((each) => each.isFollowed).map(({ task, position }) => [task.id, position]);
  }

  receive(message) {
    this.shown.forEach((each) => each.task.id === message.task.id && each.receive(message));
  }

  /** Write to the document. Looking at a notebook is no change of it that has to be saved. */
  write(change) {
    const { model } = this;
    const wasDirty = model.dirty;
    this.isWriting = true;
    this.writer.wroteAt = Date.now();
    try {
      change();
    } finally {
      this.isWriting = false;
      if (!wasDirty && !this.sharing) model.dirty = false;
    }
  }

  dispose() {
    clearTimeout(this.timer);
    this.writer.dispose();
    for (const each of [this, this.asked, ...this.shown.values()]) this.pace.stop(each);
    this.shown.clear();
  }
}

/** What to ask for a cell: the task that it shows; of a cell with several cards, each of them. */
function questionsOf(cell) {
  const source = cell.sharedModel.getSource();
  const cards = cardsOf(cell.outputs);
  const isOne = cards.length < 2 || isWhole(cell);
  return (isOne ? [cards.at(-1) ?? null] : cards).map((marked, index) =>
    ({ cell, id: isOne ? cell.id : `${cell.id}/${index}`, marked, source }));
}
