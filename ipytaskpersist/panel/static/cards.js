// Brings cards up to date that the page has loaded with the notebook. The kernel updates a card by its
// display, which reaches only pages that were open when the card was shown.

const CARD = ".ipytaskpersist-card"; // only of tasks that have not ended
const TASK = /(?:^|\s)ipytaskpersist-of-(\S+)/;
const LOOK_MS = 500;
const UNCHANGED_MS = 1600; // a card that the kernel updates is replaced every 1.5 s or sooner
const ASK_AGAIN_MS = 10000;

function taskOf(card) {
  return card.className.match(TASK)?.[1];
}

// The HTML comes from our own kernel, which has made it harmless.
function replace(card, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const before = card.previousElementSibling;
  if (before?.matches("style")) before.remove();
  card.replaceWith(made.content);
}

function initialize({ model }) {
  const seenAt = new WeakMap(); // of cards, by when they first stood in the page
  const askedAt = new Map(); // of tasks, by their ids

  function isDue(card, now) {
    if (!seenAt.has(card)) seenAt.set(card, now);
    return now - seenAt.get(card) >= UNCHANGED_MS && now - (askedAt.get(taskOf(card)) ?? -Infinity) >= ASK_AGAIN_MS;
  }

  function look() {
    const now = performance.now();
    const due = [...document.querySelectorAll(CARD)].filter((card) => taskOf(card) && isDue(card, now));
    const tasks = [...new Set(due.map(taskOf))];
    for (const task of tasks) askedAt.set(task, now);
    try {
      if (tasks.length) model.send({ tasks });
    } catch {
      stop(); // the kernel is gone; the cards say so by themselves
    }
  }

  function show({ task, html }) {
    for (const card of document.querySelectorAll(CARD)) if (taskOf(card) === task) replace(card, html);
  }

  const timer = setInterval(look, LOOK_MS);
  const stop = () => clearInterval(timer);
  model.on("msg:custom", show);
  model.on("comm_live_update", stop);
  look();
  return stop;
}

export default { initialize };
