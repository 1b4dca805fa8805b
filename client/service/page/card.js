// One item of the feed. What a press does is the feed's to say.

import { button, el, icon } from "./dom.js";
import { count, plain, titled } from "./words.js";

const TAGS = 4;

/** Domain, creator and year, as far as they are known. */
export function facts(card) {
  const known = [card.domain, card.creator, card.year === null ? "" : String(card.year)];
  return known.map((text) => plain(text, 60)).filter(Boolean);
}

/**
 * A list item for one placed item. news: what happened to it since the last feed, "" for nothing.
 * act(what, placed, button): called with "click", "like", "skip", "not-interested", "this" or "why".
 */
export function card(placed, { news, act }) {
  const title = titled(placed);
  const press = (what) => (event) => act(what, placed, event.currentTarget);
  const does = (what, words, drawing) =>
    button(words, press(what), { class: "act", icon: drawing, "data-act": what, "aria-label": `${words}: ${plain(title, 80)}` });
  return el(
    "li",
    { class: "card", "data-item": placed.item },
    el("span", { class: "rank", "aria-hidden": "true" }, count(placed.rank)),
    el(
      "article",
      {},
      el(
        "h2",
        { class: "card-title" },
        el("span", { class: "unseen" }, `${count(placed.rank)}. `),
        el("button", { type: "button", class: "title", dir: "auto", "data-act": "click", title: "Open: this is recorded on this device", on: { click: press("click") } }, title),
      ),
      el(
        "p",
        { class: "facts" },
        facts(placed).map((text) => el("span", { dir: "auto" }, text)),
        news && el("span", { class: news === "new" ? "news fresh" : "news" }, news),
        placed.moves.length > 0 && moved(placed),
      ),
      placed.tags.length > 0 && tagList(placed.tags),
      el(
        "div",
        { class: "acts" },
        does("like", "Like", "like"),
        does("skip", "Skip", "skip"),
        does("not-interested", "Not interested", "hide"),
        does("this", "More like this", "more"),
        does("why", "Why", "why"),
      ),
    ),
  );
}

function moved(placed) {
  const words = `${placed.rank < placed.score_rank ? "Raised" : "Lowered"} from ${count(placed.score_rank)}`;
  return el("span", { class: "news", title: placed.moves.map((move) => plain(move.said)).join(" ") }, words);
}

function tagList(tags) {
  const shown = tags.slice(0, TAGS).map((tag) => el("li", { class: "tag", dir: "auto" }, plain(tag, 40)));
  const left = tags.length - TAGS;
  return el("ul", { class: "tags", "aria-label": "Tags" }, shown, left > 0 && el("li", { class: "tag" }, `${left} more`));
}

/** A chip that can be taken away. */
export function chip(words, remove) {
  return el(
    "button",
    { type: "button", class: "pill on", "aria-label": `Remove: ${words}`, on: { click: remove } },
    el("span", { dir: "auto" }, words),
    icon("close"),
  );
}
