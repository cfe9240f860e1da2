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

/** All text of a task. The browser lays its blocks out when they are scrolled to. */
function whole(server, task) {
  const box = make("pre", { class: "ipytaskpersist-whole", tabindex: "0", "aria-label": "All text of the task",
    "aria-busy": "true" });
  server.get(`tasks/${encodeURIComponent(task)}/output`)
    .then((response) => pour(response.body.getReader(), box))
    .catch(({ message }) => box.append(message))
    .finally(() => box.setAttribute("aria-busy", "false"));
  return box;
}

/** Append text as it comes, one block of whole lines a frame. */
async function pour(reader, box) {
  const decoder = new TextDecoder();
  for (let text = "", isDone = false; !isDone; ) {
    const { done, value } = await reader.read();
    isDone = done;
    text += decoder.decode(value, { stream: !done });
    const end = done ? text.length : text.lastIndexOf("\n") + 1;
    if (!done && end < BLOCK) continue;
    box.append(make("div", {}, text.slice(0, end)));
    text = text.slice(end);
    await new Promise(requestAnimationFrame);
    if (!box.isConnected) return reader.cancel();
  }
}
