// What the device remembers: events, newest first, and the items that are hidden.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { button, byId, el, fill, show, toast } from "./dom.js";
import { kindWords, moment, number, plain, titled } from "./words.js";

const PAGE = 50;

let oldest = null;

/** Show the newest events and what is hidden. */
export async function openHistory() {
  fill(byId("history-rows"));
  oldest = null;
  const [events, refused] = await Promise.all([api.history(PAGE), api.refused()]);
  add(events);
  show(byId("history-empty"), events.length === 0);
  drawRefused(refused);
}

export function startHistory() {
  byId("history-older").addEventListener("click", async () => {
    const rows = byId("history-rows");
    const first = rows.children.length;
    try {
      add(await api.history(PAGE, oldest));
      rows.children[first]?.focus();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  });
}

function add(events) {
  byId("history-rows").append(...events.map(row));
  oldest = events.length ? events[events.length - 1].seq : oldest;
  show(byId("history-older"), events.length === PAGE);
}

function row(event) {
  const value = event.value === null ? "" : ` ${number(event.value)}`;
  return el(
    "li",
    { class: "event", tabindex: "-1", "data-seq": event.seq },
    el("span", { class: `kind kind-${plain(event.kind, 20)}` }, `${kindWords(event.kind)}${value}`),
    el("span", { class: "grow row-name", dir: "auto" }, titled(event)),
    el("span", { class: "hint" }, moment(event.time), !event.learned && el("span", { class: "apart" }, "not for training")),
  );
}

function drawRefused(cards) {
  const row = (card) => {
    const back = async () => {
      try {
        await api.feedback(card.item, "undo");
        drawRefused(await api.refused());
        byId("history-heading").focus();
        toast(`“${plain(titled(card), 80)}” may be shown again.`);
        await changed("verdict");
      } catch (error) {
        toast(error.message, { bad: true });
      }
    };
    const words = `Show again: ${plain(titled(card), 80)}`;
    return el("li", { class: "event" }, el("span", { class: "grow row-name", dir: "auto" }, titled(card)), button("Show again", back, { class: "quiet", "aria-label": words }));
  };
  fill(byId("refused-rows"), cards.map(row));
  show(byId("refused-empty"), cards.length === 0);
}
