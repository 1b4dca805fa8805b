// Elements, made so that text stays text: nothing here reads markup, and every string becomes a text node.

const DRAWN = "http://www.w3.org/2000/svg";

/** The element of index.html with this id; an error if there is none. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/**
 * A new element. given: attributes by name; true is an empty one, false, null and undefined leave it out;
 * `on` holds listeners by event. children: nodes and strings; null and false are left out.
 */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** One of the drawings of index.html, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(DRAWN, "svg");
  const use = document.createElementNS(DRAWN, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button. given: as for `el`; `icon` names a drawing that goes before the words. */
export function button(words, press, { icon: drawing, ...given } = {}) {
  return el("button", { type: "button", ...given, on: { click: press } }, drawing && icon(drawing), el("span", {}, words));
}

/** Replace all that an element holds. */
export function fill(holder, ...children) {
  holder.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

/** Show or hide. */
export function show(holder, shown = true) {
  holder.hidden = !shown;
}

/** A bar filled from `from` to `to`, both shares of its width, 0 to 1. kind: a class that gives its colour. */
export function bar(from, to, kind = "") {
  const inner = el("span", { class: `bar-fill ${kind}` });
  const [low, high] = [Math.max(0, Math.min(from, to)), Math.min(1, Math.max(from, to))];
  inner.style.setProperty("--from", `${100 * low}%`);
  inner.style.setProperty("--size", `${100 * Math.max(0, high - low)}%`);
  return el("span", { class: "bar", "aria-hidden": "true" }, inner);
}

/** Say something to screen readers, also while a dialog is open. */
export function announce(words) {
  for (const live of document.querySelectorAll("[data-live]")) live.textContent = words;
}

/** A short message at the edge of the page. undo: what a button "Undo" in it does, if there is to be one. */
export function toast(words, { undo = null, bad = false } = {}) {
  const note = el("div", { class: bad ? "toast bad" : "toast" }, el("span", { dir: "auto" }, words));
  const gone = () => note.remove();
  if (undo) note.append(button("Undo", () => (gone(), undo()), { class: "plain" }));
  note.append(el("button", { type: "button", class: "icon", "aria-label": "Dismiss", on: { click: gone } }, icon("close")));
  const holder = byId("toasts");
  while (holder.children.length > 2) holder.firstChild.remove();
  holder.append(note);
  announce(words);
  window.setTimeout(gone, bad || undo ? 12_000 : 6_000);
}

/** Whether the person asked for less motion. */
export function still() {
  return window.matchMedia("(prefers-reduced-motion: reduce)").matches;
}
