// Requests to the server extension, and the one long response that brings what is new.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30000;
const SILENCE_MS = 45000; // the server sends an empty line every 20 seconds

/** The server extension's endpoints, asked as JupyterLab asks its own: with its token, its XSRF cookie. */
export class Server {
  constructor(lab, settings) {
    this.base = lab["@jupyterlab/coreutils"].URLExt.join(settings.baseUrl, "ipytaskpersist/api");
    this.settings = settings;
    this.request = lab["@jupyterlab/services"].ServerConnection.makeRequest;
  }

  async send(path, body, options = {}) {
    const asked = { method: "POST", body: JSON.stringify(body), ...options };
    const response = await this.request(`${this.base}/${path}`, asked, this.settings);
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.message ?? response.statusText);
  }

  async ask(path, body) {
    return (await this.send(path, body)).json();
  }

  /** Do what a verb says to a task; return what is said. */
  async act(id, verb) {
    return (await this.ask(`tasks/${encodeURIComponent(id)}/${verb}`, {})).said;
  }
}

/**
 * The stream of events. It is opened anew when what it follows changes, when the connection is lost,
 * and when a hidden page is looked at again: a browser allows six connections to a host, so a page
 * has one, and a hidden page has none.
 */
export class Stream {
  delay = FIRST_DELAY_MS;
  isLive = false;

  constructor(server, page) {
    Object.assign(this, { server, page });
    document.addEventListener("visibilitychange", () => this.restart(document.hidden ? 5000 : 0));
  }

  /** Ask anew, for what is wanted now. */
  restart(delay = 30) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), delay);
  }

  async open() {
    this.controller?.abort();
    if (document.hidden) return this.say(false);
    const { signal } = (this.controller = new AbortController());
    await this.read(signal).catch(() => {}); // whatever it was, the connection is lost
    if (signal.aborted) return;
    this.say(false);
    this.restart(this.delay);
    this.delay = Math.min(this.delay * 2, LONGEST_DELAY_MS);
  }

  async read(signal) {
    const reader = (await this.server.send("events", this.page.wanted(), { signal })).body.getReader();
    const decoder = new TextDecoder();
    this.say(true);
    for (let text = ""; ; ) {
      const silence = setTimeout(() => reader.cancel(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done || signal.aborted) return;
      this.delay = FIRST_DELAY_MS;
      const lines = (text + decoder.decode(value, { stream: true })).split("\n");
      text = lines.pop();
      for (const line of lines) if (line) this.page.receive(JSON.parse(line));
    }
  }

  say(isLive) {
    if (isLive !== this.isLive) this.page.told((this.isLive = isLive));
  }
}
