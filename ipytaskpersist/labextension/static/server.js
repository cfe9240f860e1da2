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

  /** The address of a task's whole output, for a download. */
  outputOf(task) {
    return `${this.base}/tasks/${encodeURIComponent(task)}/output`;
  }

  get(path) {
    return this.send(path, { method: "GET" });
  }

  async post(path, body = {}) {
    return (await this.send(path, { method: "POST", body: JSON.stringify(body) })).json();
  }

  async send(path, options) {
    const response = await this.request(`${this.base}/${path}`, options, this.settings);
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.message ?? response.statusText);
  }
}

/**
 * The stream of events. It is opened anew when what it follows changes, when the connection is lost,
 * and when a hidden page is looked at again: a browser allows six connections to a host, so a page
 * has one, and a hidden page has none.
 */
export class Stream {
  constructor(server, { wanted, receive, told }) {
    Object.assign(this, { server, wanted, receive, told });
    this.delay = FIRST_DELAY_MS;
    this.isLive = false;
    document.addEventListener("visibilitychange", () => this.restart(document.hidden ? 5000 : 0));
  }

  /** Ask anew, for what is wanted now. */
  restart(delay = 30) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), delay);
  }

  async open() {
    this.controller?.abort();
    const wanted = document.hidden ? null : this.wanted();
    if (!wanted) return this.say(false);
    const controller = (this.controller = new AbortController());
    try {
      await this.read(wanted, controller);
    } catch {
      // Whatever it was, the connection is lost.
    }
    if (controller.signal.aborted) return;
    this.say(false);
    this.restart(this.delay);
    this.delay = Math.min(this.delay * 2, LONGEST_DELAY_MS);
  }

  async read(wanted, controller) {
    const options = { method: "POST", body: JSON.stringify(wanted), signal: controller.signal };
    const reader = (await this.server.send("events", options)).body.getReader();
    const decoder = new TextDecoder();
    this.say(true);
    for (let text = ""; ; ) {
      const silence = setTimeout(() => reader.cancel(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done || controller.signal.aborted) return;
      this.delay = FIRST_DELAY_MS;
      const lines = (text + decoder.decode(value, { stream: true })).split("\n");
      text = lines.pop();
      for (const line of lines) if (line) this.receive(JSON.parse(line));
    }
  }

  say(isLive) {
    if (isLive !== this.isLive) this.told((this.isLive = isLive));
  }
}
