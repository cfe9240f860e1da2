// The outputs of one task in one cell: what the server says they are, and how they get there.

import { inArea, place } from "./area.js";
import { clearedOf, closed, placeOf, setCleared } from "./marks.js";

const settled = new WeakMap();

export class TaskOutputs {
  constructor(cell, { task, outputs, position, complete, follows }, notebook) {
    Object.assign(this, { cell, task, outputs, position, complete, follows, notebook });
  }

  get range() {
    return placeOf(this.cell, this.task.id, this.follows);
  }

  get isFollowed() {
    return !this.cell.isDisposed && (this.task.is_live || !this.complete);
  }

  /** Take in what is new; it is drawn by the next frames. */
  receive({ task, position, count, edits, complete }) {
    Object.assign(this, { task, position, complete });
    for (const { at, output, text } of edits) {
      this.outputs[at] = output ?? { ...this.outputs[at], text: this.outputs[at].text + text };
    }
    this.outputs.length = count;
    this.draw();
  }

  draw() {
    this.notebook.soon(this, () => this.steps());
  }

  /** Make the cell's outputs those of the task, unless it would show less while more is on its way. */
  *steps() {
    const { cell, task, notebook } = this;
    if (!notebook.writer.isHere || cell.isDisposed || clearedOf(cell) === task.id || !this.range) return;
    setCleared(cell, null);
    const wanted = closed(this.outputs, cell, task.id).map((output) => this.settled(output));
    yield;
    const [from, to] = this.range ?? [];
    if (from === undefined || (!this.complete && wanted.length < to - from)) return;
    const present = cell.outputs.toJSON();
    const outputs = [...present.slice(0, from), ...wanted, ...present.slice(to)];
    yield* place(cell.outputs, outputs, notebook.isEqual, (change) => notebook.write(change));
  }

  /** An output as the area would have it: with what carriage returns and backspaces leave. */
  settled(output) {
    if (!settled.has(output)) settled.set(output, inArea(this.cell.outputs, output));
    return settled.get(output);
  }
}
