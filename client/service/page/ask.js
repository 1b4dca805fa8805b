// Search and steering: what the person asks of the feed in words, and how the service understood it.

import { chip } from "./card.js";
import { byId, el, fill, show } from "./dom.js";
import { plain, titled } from "./words.js";

const EXAMPLES = ["newer", "older", "less dark", "for children"];
const PAUSE_MS = 350;

const wanted = { query: "", steer: "", like: null, tags: [] };

/** What is asked for, as the service takes it. change: values of `tags` or `like` to put in first. */
export function asked(change = {}) {
  Object.assign(wanted, change);
  return { query: wanted.query, steer: wanted.steer, like: wanted.like && wanted.like.item, tags: [...wanted.tags] };
}

/** Take an item as "this". */
export function chooseThis(placed) {
  asked({ like: { item: placed.item, title: titled(placed) } });
}

/** Ask for nothing: the plain feed. */
export function askNothing() {
  asked({ query: "", steer: "", like: null, tags: [] });
  byId("search").value = "";
  byId("steer").value = "";
}

/** Listen to the two forms; `again` asks for a new ranking. */
export function startAsking(again) {
  const search = byId("search");
  const read = () => {
    const query = search.value.trim();
    if (query === wanted.query) return;
    wanted.query = query;
    again();
  };
  let pause = 0;
  search.addEventListener("input", () => {
    window.clearTimeout(pause);
    pause = window.setTimeout(read, search.value ? PAUSE_MS : 0);
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    window.clearTimeout(pause);
    read();
  });
  const steer = (words) => {
    byId("steer").value = words;
    wanted.steer = words.trim();
    again();
  };
  byId("steer-form").addEventListener("submit", (event) => {
    event.preventDefault();
    steer(byId("steer").value);
  });
  const add = (words) => steer(wanted.steer ? `${wanted.steer}, ${words}` : words);
  const examples = EXAMPLES.map((words) => el("button", { type: "button", class: "pill", on: { click: () => add(words) } }, words));
  fill(byId("steer-examples"), examples);
}

/** Chips for what narrows or steers the feed; pressing one takes it away. */
export function drawAsked(again) {
  const without = (change, input) => () => {
    asked(change);
    if (input) byId(input).value = "";
    again();
    byId(input ?? "feed-heading").focus();
  };
  const chips = [
    wanted.query && chip(`Search: ${plain(wanted.query, 40)}`, without({ query: "" }, "search")),
    wanted.steer && chip(`Steered: ${plain(wanted.steer, 40)}`, without({ steer: "" }, "steer")),
    wanted.like && chip(`This: ${plain(wanted.like.title, 40)}`, without({ like: null })),
    ...wanted.tags.map((tag) => chip(`Only: ${plain(tag, 40)}`, without({ tags: [] }))),
  ].filter(Boolean);
  fill(byId("asked"), chips);
  show(byId("asked"), chips.length > 0);
}

/** Say how words were read: what was corrected, not known, understood and left out. */
export function drawUnderstood(understood) {
  const lines = [];
  const say = (kind, ...words) => lines.push(el("li", { class: kind }, words));
  const quote = (text) => el("q", { dir: "auto" }, plain(text, 80));
  if (understood.query && understood.feed) {
    say("warn", "Nothing in the catalogue answers ", quote(understood.query), ", so this is your feed.");
  } else if (understood.query) {
    const ways = [understood.by_letters && "its words", understood.by_meaning && "its meaning"].filter(Boolean);
    say("good", "Found by ", ways.join(" and by "), ", in an order that suits you.");
  }
  for (const [typed, read] of Object.entries(understood.corrected)) say("good", quote(typed), " was read as ", quote(read), ".");
  if (understood.unknown.length) {
    const words = understood.unknown.flatMap((word, place) => [place ? ", " : "", quote(word)]);
    say("warn", "No title has ", ...words, ".");
  }
  if (understood.steering) say("good", "Understood: ", el("strong", { dir: "auto" }, plain(understood.steering)), ".");
  for (const [part, why] of understood.ignored) say("warn", "Left out ", quote(part), ": ", el("span", { dir: "auto" }, plain(why)), ".");
  if (understood.ignored.some(([part]) => /\b(this|these|that|it)\b/i.test(part)) && !wanted.like) {
    say("hint", "To say what “this” is, press “More like this” on an item.");
  }
  fill(byId("understood"), lines);
  show(byId("understood"), lines.length > 0);
}
