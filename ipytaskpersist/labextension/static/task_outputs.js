// The outputs of one task in one cell: what the server says they are, and how they get there.

import { canReplace, inArea } from "./area.js";
import { clearedOf, closed, placeOf, setCleared } from "./marks.js";

export const FINAL = new Set(["completed", "failed", "cancelled", "interrupted"]);
const settled = new WeakMap();

export class TaskOutputs {
  constructor(cell, { task, outputs, position, complete = true }, notebook) {
    Object.assign(this, { cell, task, outputs, position, complete, notebook });
  }

  get isFollowed() {
    return !this.cell.isDisposed && (!FINAL.has(this.task.state) || this.task.is_live || !this.complete);
  }

  /** Take in what is new; it is drawn by the next frames. */
  receive({ task, position, count, edits, complete = true }) {
    Object.assign(this, { task, position, complete });
    for (const { at, output, text } of edits) {
      if (output) this.outputs[at] = output;
      else this.outputs[at] = { ...this.outputs[at], text: this.outputs[at].text + text };
    }
    this.outputs.length = count;
    this.draw();
  }

  draw() {
    this.notebook.writer.soon(this, () => this.notebook.pace.do(this, () => this.steps()));
  }

  /** Make the cell's outputs those of the task, one output a step, and touch none that is as it should be. */
  *steps() {
    const isMine = this.notebook.isWriter && !this.cell.isDisposed && clearedOf(this.cell) !== this.task.id;
    if (!isMine || !placeOf(this.cell, this.task.id)) return;
    setCleared(this.cell, null);
    const wanted = this.settled();
    yield;
    yield* this.put(wanted);
  }

  *put(wanted) {
    const area = this.cell.outputs;
    const [from, to] = placeOf(this.cell, this.task.id) ?? [];
    if (from === undefined || this.isShorter(wanted, to - from)) return;
    const present = area.toJSON();
    const isInside = to < area.length && to - from !== wanted.length;
    if (isInside || !canReplace(present.slice(from, to), wanted)) {
      yield* this.rewrite([...present.slice(0, from), ...wanted, ...present.slice(to)]);
      return;
    }
    for (const [index, output] of wanted.entries()) {
      if (this.cell.isDisposed) return;
      const at = from + index;
      if (at >= area.length) this.write(() => area.add(output));
      else if (!this.notebook.isEqual(present[at], output)) this.write(() => area.set(at, output));
      else continue;
      yield;
    }
  }

  /** Whether more is on its way, without which the cell would show less than it does now. */
  isShorter(wanted, present) {
    return !this.complete && wanted.length < present;
  }

  *rewrite(outputs) {
    const area = this.cell.outputs;
    this.write(() => area.clear());
    for (const output of outputs) {
      this.write(() => area.add(output));
      yield;
    }
  }

  /** The outputs as the area would have them: with what carriage returns and backspaces leave. */
  settled() {
    return closed(this.outputs, this.cell, this.task.id).map((output) => {
      if (!settled.has(output)) settled.set(output, inArea(this.cell.outputs, output));
      return settled.get(output);
    });
  }

  write(change) {
    this.notebook.write(change);
  }
}
