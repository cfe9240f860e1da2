// Of the pages that share a document, one writes to it: of those that hear of what is new, the one that
// has done so the longest. They tell each other by what the document has for that, its "awareness".

const KEY = "ipytaskpersist";
const ALONE_MS = 1000; // a page that has heard of no other for so long is alone
const SAY_MS = 4000;
const SILENT_MS = 10000; // a page that has said nothing for so long is gone: its browser was killed
const REST_MS = 3000; // a shared document is saved a second after its last change

export class Writer {
  known = "";
  since = null;
  waiting = new Map();
  wroteAt = 0;

  /** `changed()` is called when this page may have become the one. */
  constructor(awareness, changed) {
    Object.assign(this, { awareness, changed });
    awareness.on("change", () => this.hear());
  }

  /** Whether this page hears of what is new: one that is hidden does not. */
  setLive(isLive) {
    this.since = isLive ? (this.since ?? Date.now()) : null;
    this.say();
    this.stop();
    if (!isLive) return;
    this.alone = setTimeout(this.changed, ALONE_MS);
    this.saying = setInterval(() => { this.hear(); this.say(); }, SAY_MS);
  }

  get isHere() {
    const pages = this.pages();
    const isFirst = pages[0]?.[1] === this.awareness.clientID;
    return isFirst && (pages.length > 1 || Date.now() - this.since >= ALONE_MS);
  }

  /** The pages that are live, the oldest first. */
  pages() {
    const { clientID, meta } = this.awareness;
    const isHeard = (id) => id === clientID || Date.now() - (meta.get(id)?.lastUpdated ?? 0) < SILENT_MS;
    return [...this.awareness.getStates()]
      .filter(([id, state]) => state[KEY] && isHeard(id))
      .map(([id, state]) => [state[KEY], id])
      .sort(([one, id], [other, otherId]) => one - other || id - otherId);
  }

  /** A page that is new has not heard of the others: each says so again. */
  hear() {
    const pages = JSON.stringify(this.pages());
    if (pages === this.known) return;
    this.known = pages;
    this.say();
    this.changed();
  }

  say() {
    this.awareness.setLocalStateField(KEY, this.since);
  }

  /** Do what may write, together with all that comes in a few seconds. */
  soon(owner, work) {
    this.waiting.set(owner, work);
    this.batch ??= setTimeout(() => this.doAll(), Math.max(0, this.wroteAt + REST_MS - Date.now()));
  }

  doAll() {
    this.batch = null;
    for (const work of this.waiting.values()) work();
    this.waiting.clear();
  }

  stop() {
    clearTimeout(this.alone);
    clearInterval(this.saying);
  }

  dispose() {
    this.stop();
    clearTimeout(this.batch);
  }
}
