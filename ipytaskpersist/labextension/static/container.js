// The container that JupyterLab and Notebook 7 load: module federation's two functions, by hand, so
// that nothing has to be built. The modules beside it are plain ES modules; what they need of
// JupyterLab comes from the scope that the application shares.

(() => {
  const here = document.currentScript.src;
  const NEEDED = [
    ...["application", "apputils", "coreutils", "notebook", "running", "services", "ui-components"].map((name) => `@jupyterlab/${name}`),
    ...["coreutils", "signaling", "widgets"].map((name) => `@lumino/${name}`),
  ];
  let scope = {};

  const newestFirst = (one, other) => other.localeCompare(one, undefined, { numeric: true });

  /** A module that the application shares; undefined where it does not share that one. */
  async function shared(name) {
    const versions = scope[name] ?? {};
    const newest = Object.keys(versions).sort(newestFirst)[0];
    return [name, newest && (await versions[newest].get())()];
  }

  async function get() {
    const { plugins } = await import(new URL("extension.js", here));
    const module = { __esModule: true, default: plugins(Object.fromEntries(await Promise.all(NEEDED.map(shared)))) };
    return () => module;
  }

  (window._JUPYTERLAB ??= {}).ipytaskpersist = { init: (shares) => { scope = shares; }, get };
})();
