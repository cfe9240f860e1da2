// The tab "Background tasks". The list in it is the panel's, which the server has.

export class Sidebar {
  constructor(widget, page) {
    Object.assign(this, { widget, page });
    widget.onAfterShow = () => this.show();
    widget.onBeforeHide = () => this.list?.hide();
    widget.onActivateRequest = () => this.focus();
    this.update();
  }

  update() {
    const count = this.page.running.length;
    const { title } = this.widget;
    title.caption = `Background tasks, ${count || "none"} running`;
    title.dataset = { ...title.dataset, "ipytaskpersist-running": String(count), jptablabel: "Background Tasks" };
    this.list?.later();
  }

  async show() {
    try {
      this.list = await (this.loading ??= this.load());
      if (this.widget.isVisible) this.list.show();
    } catch ({ message }) {
      this.loading = null;
      this.widget.node.textContent = `The server does not give the list of background tasks: ${message}`;
    }
  }

  async focus() {
    await this.loading;
    this.list?.focus();
  }

  async load() {
    const address = (name) => `${this.page.server.base}/${name}`;
    const style = document.createElement("link");
    Object.assign(style, { rel: "stylesheet", href: address("panel.css") });
    document.head.append(style);
    const { Sidebar: List } = await import(address("panel.js"));
    return new List(this.widget.node, this.page);
  }
}
