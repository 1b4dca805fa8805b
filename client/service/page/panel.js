// The drawer beside the feed. It is a modal dialog, so Escape closes it and the focus goes back to what opened it.

import { byId, fill } from "./dom.js";

let lost = null;

/**
 * Open the drawer under a heading, empty but for `children`; returns its body, to be filled later.
 * whenLost: called on closing when what opened it is no longer there to take the focus.
 */
export function openPanel(heading, { whenLost = null } = {}, ...children) {
  const panel = byId("panel");
  const title = byId("panel-heading");
  title.textContent = heading;
  title.setAttribute("dir", "auto");
  fill(byId("panel-body"), ...children);
  lost = whenLost;
  if (!panel.open) panel.showModal();
  byId("panel-body").scrollTop = 0;
  title.focus();
  return byId("panel-body");
}

export function closePanel() {
  byId("panel").close();
}

/** Give the drawer its close button, and let a press beside it close it too. */
export function startPanel() {
  const panel = byId("panel");
  byId("panel-close").addEventListener("click", closePanel);
  panel.addEventListener("click", (event) => {
    if (event.target === panel) closePanel();
  });
  panel.addEventListener("close", () => {
    const at = document.activeElement;
    if (!at || at === document.body || panel.contains(at)) lost?.();
  });
}
