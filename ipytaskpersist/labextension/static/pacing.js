// Work in small steps, a few in each frame, so that the page never stands still.

const BUDGET_MS = 10;

/** Runs generators one after the other; each of them once at a time, whatever asks for it. */
export class Pace {
  waiting = new Map();

  /** Do `steps()`, a generator, soon; begin it anew where `owner` has one that is under way. */
  do(owner, steps) {
    this.stop(owner);
    this.waiting.set(owner, steps());
    this.asked ??= this.ask();
  }

  stop(owner) {
    this.waiting.get(owner)?.return();
    this.waiting.delete(owner);
  }

  ask() {
    // A page in the background has no frames.
    return document.hidden ? setTimeout(() => this.run(), 50) : requestAnimationFrame(() => this.run());
  }

  run() {
    const until = performance.now() + BUDGET_MS;
    while (this.waiting.size && performance.now() < until) {
      const [[owner, steps]] = this.waiting;
      if (this.isDone(steps)) this.waiting.delete(owner);
    }
    this.asked = this.waiting.size ? this.ask() : null;
  }

  isDone(steps) {
    try {
      return steps.next().done;
    } catch (error) {
      console.error("ipytaskpersist", error); // one cell must not end the filling of all
      return true;
    }
  }
}
