// The privacy meter: what was spent of each budget, what left the device, and whether it takes part at all.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { bar, byId, el, fill, show, toast } from "./dom.js";
import { bytes, count, many, moment, number, phaseWords, plain, small, trainingWords, unitWords } from "./words.js";

const PAGE = 20;
const NEARLY = 0.8;

let size = PAGE;

/** Read what taking part has cost and show it. */
export async function openPrivacy() {
  const found = await api.privacy(size);
  const broken = found.ledger !== "ok";
  byId("ledger-state").textContent = broken ? `The ledger cannot be read, so this device does not train: ${plain(found.ledger)}` : "";
  show(byId("ledger-state"), broken);
  drawTiles(found);
  fill(byId("privacy-layers"), found.layers.length ? found.layers.map(layer) : el("p", { class: "empty" }, "No budget is set: this device has not been asked to train."));
  byId("participate").checked = found.participate;
  byId("participate-hint").textContent = found.participate
    ? `Now: ${trainingWords(found.training)}. Switch it off to pause at any time; what was sent stays spent.`
    : "Paused: nothing is sent, and everything here goes on working.";
  byId("forget-kept").textContent = plain(found.kept_after_forgetting, 800);
  drawSent(found);
}

export function startPrivacy() {
  byId("participate").addEventListener("change", async (event) => {
    const participate = event.currentTarget.checked;
    try {
      await api.change({ participate });
      toast(participate ? "This device takes part again." : "Paused. Nothing is sent.");
      await openPrivacy();
      await changed("setting");
    } catch (error) {
      byId("participate").checked = !participate;
      toast(error.message, { bad: true });
    }
  });
  byId("sent-more").addEventListener("click", async () => {
    size += 5 * PAGE;
    try {
      await openPrivacy();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  });
}

function drawTiles(found) {
  const tile = (figure, words) => el("div", { class: "tile figure-tile" }, el("strong", {}, figure), el("span", {}, words));
  fill(
    byId("privacy-tiles"),
    tile(count(found.rounds), found.rounds === 1 ? "training round taken part in" : "training rounds taken part in"),
    tile(bytes(found.bytes_sent), "sent in all"),
    tile(found.participate ? "On" : "Paused", "taking part in training"),
  );
}

function layer(one) {
  const share = one.budget > 0 ? one.spent / one.budget : 1;
  const [unit, means] = unitWords(one.unit);
  const words = `${number(one.spent)} of ${number(one.budget)}`;
  const left = one.spent >= one.budget ? "All spent" : `${number(one.budget - one.spent)} left`;
  return el(
    "div",
    { class: "layer" },
    el("div", { class: "layer-head" }, el("strong", { class: "grow" }, unit), el("span", { class: "figure" }, `epsilon ${words}`)),
    el(
      "div",
      { role: "meter", "aria-label": `Epsilon spent: ${unit}`, "aria-valuemin": 0, "aria-valuemax": one.budget, "aria-valuenow": Math.min(one.spent, one.budget), "aria-valuetext": words },
      bar(0, share, share >= NEARLY ? "nearly" : ""),
    ),
    el("p", { class: "hint" }, `${left}. This ${means || "is one unit of protection"}, at delta ${small(one.delta)}.`),
  );
}

function drawSent(found) {
  byId("sent-hint").textContent = found.sent.length
    ? `The newest ${many(found.sent.length, "message")}. The fingerprint is the SHA-256 of exactly what was sent.`
    : "Nothing has left this device.";
  show(byId("sent"), found.sent.length > 0);
  show(byId("sent-more"), found.sent.length >= size);
  fill(byId("sent-rows"), found.sent.map(sent));
}

function sent(one) {
  const spent = Object.entries(one.epsilon).map(([unit, value]) => `${number(value)} (${plain(unit, 20)})`);
  const cell = (label, ...children) => el("td", { "data-label": label }, ...children.filter(Boolean));
  return el(
    "tr",
    {},
    cell("When", moment(one.time)),
    cell("For", `${phaseWords(one.phase)}, round ${count(one.round)}`, el("span", { class: "hint", dir: "auto" }, plain(one.run, 60))),
    cell("Size", bytes(one.bytes)),
    cell("Epsilon it cost", spent.join(", ") || "none"),
    cell("Fingerprint", one.refusal && `refused: ${plain(one.refusal, 40)}`, one.digest && el("code", {}, plain(one.digest, 64))),
  );
}
