// Beside the feed, in short: what the person leans to and what was spent; and the meter at the top of every page.

import * as api from "./api.js";
import { bar, byId, el, fill, show } from "./dom.js";
import { bytes, number, plain } from "./words.js";

const SHOWN = 6;

/** Read and show both. */
export async function drawGlance(status) {
  const none = { interests: [] };
  const [interests, privacy] = await Promise.all([status.items ? api.interests() : none, api.privacy(1)]);
  const worst = privacy.layers.reduce((so_far, one) => (share(one) > share(so_far) ? one : so_far), privacy.layers[0]);
  drawPill(privacy, worst);
  fill(byId("glance"), leaning(interests.interests), spent(privacy));
}

const share = (layer) => (layer.budget > 0 ? layer.spent / layer.budget : 1);

function drawPill(privacy, worst) {
  const pill = byId("pill");
  const quiet = privacy.bytes_sent === 0 || !worst;
  const words = quiet ? "Nothing sent" : `ε ${number(worst.spent)} of ${number(worst.budget)}`;
  const long = quiet ? "Privacy: nothing has left this device" : `Privacy: epsilon ${number(worst.spent)} of ${number(worst.budget)} spent`;
  fill(pill, bar(0, quiet ? 0 : share(worst)), el("span", { "aria-hidden": "true" }, words), el("span", { class: "unseen" }, long));
  show(pill);
}

function leaning(interests) {
  const shown = interests.filter((one) => one.factor > 0).slice(0, SHOWN);
  const most = Math.max(...shown.map((one) => one.weight * one.factor), 1);
  const row = (one) =>
    el("li", {}, el("span", { dir: "auto" }, plain(one.tag, 40)), bar(0, (one.weight * one.factor) / most), one.factor !== 1 && el("span", { class: "unseen" }, "edited by you"));
  return el(
    "section",
    {},
    el("h2", {}, "You lean to"),
    shown.length ? el("ul", {}, shown.map(row)) : el("p", { class: "hint" }, "Open or like something, and it shows here."),
    el("a", { href: "#interests" }, "Change your interests"),
  );
}

function spent(privacy) {
  const words = privacy.bytes_sent ? `${bytes(privacy.bytes_sent)} of numbers sent, and no event.` : "Nothing has left this device.";
  const row = (one) => el("li", {}, el("span", {}, `${number(one.spent)} of ${number(one.budget)} (${plain(one.unit, 20)})`), bar(0, share(one)));
  return el(
    "section",
    {},
    el("h2", {}, "Privacy spent"),
    el("ul", {}, privacy.layers.map(row)),
    el("p", { class: "hint" }, privacy.participate ? words : `Paused. ${words}`),
    el("a", { href: "#privacy" }, "See what was sent"),
  );
}
