// The note that stands for the middle of a long output: its command becomes a button that shows it all.

const BLOCK = 1 << 16;

/** Make buttons of the notes as they appear: their style runs an animation, which says that they do. */
export function unfoldIn(document, server) {
  document.addEventListener("animationstart", ({ animationName, target }) => {
    if (animationName !== "ipytaskpersist-fold") return;
    const note = target.textContent;
    const button = make("button", { type: "button", title: note, textContent: "show" });
    button.onclick = () => button.replaceWith(whole(server, note.trim().split(/\s+/).at(-1)));
    target.replaceWith(button);
  });
}

function make(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

/** All text of a task. The browser lays its blocks out when they are scrolled to. */
function whole(server, task) {
  const box = make("pre", { className: "ipytaskpersist-whole", tabIndex: 0, role: "region",
    ariaLabel: "All text of the task", ariaBusy: true });
  server.send(`tasks/${encodeURIComponent(task)}/output`, undefined, { method: "GET" })
    .then(({ body }) => pour(body.getReader(), box))
    .catch(({ message }) => box.append(message))
    .finally(() => { box.ariaBusy = false; });
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
    box.append(make("div", { textContent: text.slice(0, end) }));
    text = text.slice(end);
    await new Promise(requestAnimationFrame);
    if (!box.isConnected) return reader.cancel();
  }
}
