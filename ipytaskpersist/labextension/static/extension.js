// The plugins of the extension.

import { OpenNotebook } from "./notebook.js";
import { Pace } from "./pacing.js";
import { Server, Stream } from "./server.js";
import { isEqual } from "./equality.js";

/** What the page follows: its notebooks, and the list of tasks. */
class Page {
  constructor(lab, settings) {
    this.server = new Server(lab, settings);
    this.pace = new Pace();
    this.notebooks = new Set();
    this.isEqual = isEqual;
    this.changed = () => this.stream.restart();
    this.listed = null;
    this.stream = new Stream(this.server, {
      wanted: () => this.wanted(),
      receive: (message) => this.receive(message),
      told: (isLive) => document.body.classList.toggle("ipytaskpersist-live", isLive),
    });
  }

  async open(panel) {
    await panel.context.ready;
    if (panel.isDisposed) return;
    const notebook = new OpenNotebook(panel, this);
    this.notebooks.add(notebook);
    panel.disposed.connect(() => {
      this.notebooks.delete(notebook);
      notebook.dispose();
      this.changed();
    });
  }

  of(content) {
    return [...this.notebooks].find((notebook) => notebook.panel.content === content);
  }

  wanted() {
    const paths = [...this.notebooks].map((notebook) => notebook.path);
    const follow = Object.fromEntries([...this.notebooks].flatMap((notebook) => [...notebook.followed()]));
    return paths.length || this.listed ? { paths, follow, list: this.listed } : null;
  }

  receive(message) {
    for (const notebook of this.notebooks) {
      if (message.edits) notebook.receive(message);
      else if (message.launched && message.launched.path === notebook.path) notebook.fill();
    }
    if (message.tasks) this.toldList?.(message);
  }
}

export function plugins(lab) {
  const { INotebookTracker, NotebookActions } = lab.notebook;
  let page = null;
  const fill = {
    id: "ipytaskpersist:fill",
    description: "Puts the outputs of background tasks into the cells that launched them.",
    autoStart: true,
    requires: [INotebookTracker],
    activate(app, tracker) {
      page = new Page(lab, app.serviceManager.serverSettings);
      const forget = (_, { notebook: content, cell }) => page.of(content)?.forget(cell.model);
      NotebookActions.outputCleared.connect(forget);
      NotebookActions.executionScheduled.connect(forget);
      tracker.forEach((panel) => page.open(panel));
      tracker.widgetAdded.connect((_, panel) => page.open(panel));
    },
  };
  return [fill];
}
