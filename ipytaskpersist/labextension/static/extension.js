// The plugins of the extension: filling notebooks, the sidebar, and a section among the running things.

import { Page } from "./page.js";
import { Sidebar } from "./sidebar.js";

const ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16"><path class="jp-icon3" fill="#616161" ' +
  'd="M4 5h10v2H4zm0 6h7v2H4zm0 6h5v2H4zm9-5.5v9l7.5-4.5z"/></svg>';

export function plugins(lab) {
  const style = document.createElement("link");
  Object.assign(style, { rel: "stylesheet", href: new URL("style.css", import.meta.url) });
  document.head.append(style);
  const { INotebookTracker, NotebookActions } = lab["@jupyterlab/notebook"];
  const icon = new lab["@jupyterlab/ui-components"].LabIcon({ name: "ipytaskpersist:tasks", svgstr: ICON });
  const IPage = new (lab["@lumino/coreutils"].Token)("ipytaskpersist:IPage", "What this page follows.");

  const fill = {
    id: "ipytaskpersist:fill",
    description: "Puts the outputs of background tasks into the cells that launched them.",
    autoStart: true,
    requires: [INotebookTracker],
    provides: IPage,
    activate(app, tracker) {
      const page = new Page(lab, app, tracker);
      const forget = (_, { notebook: content, cell }) => page.notebooks.get(content)?.forget(cell.model);
      NotebookActions.outputCleared.connect(forget);
      NotebookActions.executionScheduled.connect(forget);
      tracker.forEach((panel) => page.add(panel));
      tracker.widgetAdded.connect((_, panel) => page.add(panel));
      return page;
    },
  };

  const sidebar = {
    id: "ipytaskpersist:sidebar",
    description: "Lists background tasks in a tab of the sidebar.",
    autoStart: true,
    requires: [IPage, INotebookTracker],
    optional: [lab["@jupyterlab/application"].ILayoutRestorer, lab["@jupyterlab/apputils"].ICommandPalette],
    activate(app, page, tracker, restorer, palette) {
      const widget = new lab["@lumino/widgets"].Widget();
      widget.id = "ipytaskpersist-tasks";
      widget.title.icon = icon;
      const sidebar = new Sidebar(widget, page);
      page.listChanged.connect(() => sidebar.update());
      tracker.currentChanged.connect(() => sidebar.update());
      app.shell.add(widget, "left", { rank: 250 });
      restorer?.add(widget, widget.id);
      const command = "ipytaskpersist:show";
      app.commands.addCommand(command, { label: "Show Background Tasks", execute: () => app.shell.activateById(widget.id) });
      palette?.addItem({ command, category: "Background Tasks" });
    },
  };

  const running = {
    id: "ipytaskpersist:running",
    description: "Lists background tasks among the running terminals and kernels.",
    autoStart: true,
    requires: [IPage],
    optional: [lab["@jupyterlab/running"]?.IRunningSessionManagers].filter(Boolean),
    activate(_app, page, managers) {
      const cancel = ({ id }) => page.server.act(id, "cancel");
      managers?.add({
        name: "Background tasks",
        running: () => page.running.map((task) => ({
          label: () => task.name || `task ${task.number}`,
          labelTitle: () => task.line,
          icon: () => icon,
          open: () => page.open(task),
          shutdown: () => cancel(task),
        })),
        shutdownAll: () => page.running.forEach(cancel),
        refreshRunning: () => {},
        runningChanged: page.listChanged,
        shutdownLabel: "Cancel",
        shutdownAllLabel: "Cancel All",
        shutdownAllConfirmationText: "Cancel every background task that runs, of all notebooks?",
      });
    },
  };
  return [fill, sidebar, running];
}
