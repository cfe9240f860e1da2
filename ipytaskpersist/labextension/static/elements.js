// Elements of a page, and times as a person reads them.

export function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The time, in seconds since the epoch as the server has it. */
export function now() {
  return Date.now() / 1000;
}

/** A time of today, or a day, in the browser's own zone. */
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }) :
    at.toLocaleDateString([], { day: "numeric", month: "short" });
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
