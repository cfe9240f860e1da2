// The note that stands for the middle of a long output: its command becomes a button that shows it all.

import { make } from "./elements.js";

const BLOCK = 1 << 16;

/** Make buttons of the notes as they appear: their style runs an animation, which says that they do. */
export function unfoldIn(document, server) {
  document.addEventListener("animationstart", ({ animationName, target }) => {
    if (animationName !== "ipytaskpersist-fold") return;
    const task = target.textContent.trim().split(/\s+/).at(-1);
    const show = () => shown.replaceWith(whole(server, task));
    const shown = make("button", { type: "button", title: target.textContent, onclick: show }, "show");
    target.replaceWith(shown);
  });
}

/** All text of a task. It arrives in blocks, which the browser lays out when they are scrolled to. */
function whole(server, task) {
  const box = make("pre", { class: "ipytaskpersist-whole", tabindex: "0", "aria-label": "All text of the task" });
  server.get(`tasks/${encodeURIComponent(task)}/output`).then((response) => response.text()).then(
    (text) => {
      const add = (from) => {
        box.append(make("div", {}, text.slice(from, from + BLOCK)));
        if (from + BLOCK < text.length && box.isConnected) requestAnimationFrame(() => add(from + BLOCK));
      };
      add(0);
    },
    ({ message }) => box.append(message),
  );
  return box;
}
