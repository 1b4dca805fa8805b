// The feed: what is asked for, the ranking that comes back, and what a press on an item does to the next one.

import * as api from "./api.js";
import { asked, chooseThis, drawAsked, drawUnderstood, startAsking } from "./ask.js";
import { card } from "./card.js";
import { changed, onChange } from "./changes.js";
import { announce, byId, fill, show, still, toast } from "./dom.js";
import { closePanel } from "./panel.js";
import { openWhy } from "./why.js";
import { adapterWords, count, many, number, plain, titled } from "./words.js";

const PAGE = 10;
const MOST = 100;
const DONE = { click: "Opened", like: "Liked", skip: "Skipped" };

let size = PAGE;
let request = 0;
let last = null; // the ranking that is shown, and what it was asked for
let shown = false;

/** Ask for a new ranking and show it; an answer that a later request has overtaken is dropped. */
export async function refresh() {
  const mine = ++request;
  const wanted = asked();
  byId("cards").setAttribute("aria-busy", "true");
  let slate;
  try {
    slate = await api.recommend({ ...wanted, k: size });
  } catch (error) {
    if (mine === request) fail(error);
    return;
  }
  if (mine !== request) return;
  show(byId("trouble"), false);
  draw(slate, JSON.stringify(wanted));
}

function fail(error) {
  byId("cards").removeAttribute("aria-busy");
  byId("trouble").textContent = error.message;
  show(byId("trouble"));
}

function draw(slate, wanted) {
  const before = ranksBefore(slate.slate, wanted);
  const heights = heightsNow();
  const focus = focusAt(document.activeElement);
  fill(byId("cards"), slate.slate.map((placed) => card(placed, { news: news(placed, before), act })));
  byId("cards").removeAttribute("aria-busy");
  last = { wanted, slate: slate.slate };
  drawAsked(again);
  drawUnderstood(slate.understood);
  drawRest(slate);
  if (!still()) slide(heights);
  if (!byId("panel").open) refocus(focus);
  say(slate, before);
}

/** Ranks by item in the ranking before; null if it answered something else, or nothing has changed since. */
function ranksBefore(slate, wanted) {
  if (!last || last.wanted !== wanted || last.slate.length < slate.length) return null;
  const ranks = new Map(last.slate.map((one) => [one.item, one.rank]));
  const same = ranks.size === slate.length && slate.every((one) => ranks.get(one.item) === one.rank);
  return same ? null : ranks;
}

/** "new", "up 3", "down 1" or "" since the ranking before. */
function news(placed, before) {
  if (!before) return "";
  const earlier = before.get(placed.item);
  if (earlier === undefined) return "new";
  if (earlier === placed.rank) return "";
  return earlier > placed.rank ? `up ${count(earlier - placed.rank)}` : `down ${count(placed.rank - earlier)}`;
}

function say(slate, before) {
  if (!before) return;
  const fresh = slate.slate.filter((one) => !before.has(one.item)).length;
  announce(`The feed has changed: ${many(fresh, "new item")} of ${count(slate.slate.length)}.`);
}

function drawRest(slate) {
  const found = slate.slate.length;
  const empty = byId("feed-empty");
  empty.textContent = "Nothing is left to show. Take back a mute or a filter, or search for something else.";
  show(empty, found === 0);
  show(byId("more"), found === size && size < MOST);
  const early = slate.stage === "prior" ? " There was no time for the trained model’s part." : "";
  byId("feed-foot").textContent =
    `Ranked on this device in ${number(slate.took_ms)} ms from ${many(slate.events, "event")}; model: ${adapterWords(slate.adapter)}.${early}`;
  byId("feed-heading").textContent = slate.understood.feed ? "Your feed" : "What was found";
}

// --- keeping place: focus and movement ---------------------------------------------------------------------

function cards() {
  return [...byId("cards").children];
}

function heightsNow() {
  return new Map(cards().map((one) => [one.dataset.item, one.getBoundingClientRect().top]));
}

/** Where a button is: the item, its place and what the button does; null if it is in no card. */
function focusAt(at) {
  const holder = at?.closest("#cards > li");
  return holder && { item: holder.dataset.item, place: cards().indexOf(holder), act: at.dataset.act };
}

/** The same button of the same item, or, if the item has gone, the title of the one in its place. */
function refocus(focus) {
  if (!focus) return;
  const kept = cards().find((one) => one.dataset.item === focus.item);
  const one = kept ?? cards()[Math.min(focus.place, cards().length - 1)];
  const target = one && one.querySelector(`[data-act="${kept ? focus.act : "click"}"]`);
  (target ?? byId("feed-heading")).focus({ preventScroll: true });
}

function slide(before) {
  for (const one of cards()) {
    const earlier = before.get(one.dataset.item);
    const by = earlier === undefined ? 0 : earlier - one.getBoundingClientRect().top;
    const timing = { duration: 260, easing: "cubic-bezier(.2, .7, .2, 1)" };
    if (by) one.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], timing);
    else if (earlier === undefined && before.size) one.animate([{ opacity: 0 }, { opacity: 1 }], timing);
  }
}

// --- what a press does -------------------------------------------------------------------------------------

async function act(what, placed, from) {
  if (what === "why") {
    const focus = focusAt(from);
    const whenLost = () => refocus(focus);
    return openWhy(placed, { asked: asked(), narrow, choose: () => choose(placed), whenLost });
  }
  if (what === "this") return choose(placed);
  const title = plain(titled(placed), 80);
  try {
    if (what === "click") await api.record(placed.item, "click");
    else await api.feedback(placed.item, what);
  } catch (error) {
    return toast(error.message, { bad: true });
  }
  if (what === "not-interested") toast(`Hidden: “${title}”.`, { undo: () => takeBack(placed) });
  else toast(`${DONE[what]}: “${title}”. The feed has changed.`);
  from.closest("li")?.classList.add("leaving");
  await changed(what === "not-interested" ? "verdict" : "event");
}

async function takeBack(placed) {
  try {
    await api.feedback(placed.item, "undo");
    await changed("verdict");
  } catch (error) {
    toast(error.message, { bad: true });
  }
}

function choose(placed) {
  closePanel();
  chooseThis(placed);
  byId("steer").focus();
  announce(`“This” is now ${plain(titled(placed), 80)}. Say what should be different, or leave it empty.`);
  return again();
}

function narrow(tag) {
  closePanel();
  asked({ tags: [tag] });
  byId("feed-heading").focus();
  return again();
}

/** A new ranking for something else than before. */
function again() {
  size = PAGE;
  return refresh();
}

/** Show the feed; called when its page is opened. */
export function openFeed() {
  shown = true;
  return refresh();
}

/** The feed is not on the screen; it need not follow what changes. */
export function leaveFeed() {
  shown = false;
}

export function startFeed() {
  startAsking(again);
  byId("more").addEventListener("click", async () => {
    const first = size;
    size = Math.min(MOST, size + PAGE);
    await refresh();
    cards()[first]?.querySelector("[data-act=click]").focus();
  });
  onChange(() => (shown ? refresh() : null));
}
