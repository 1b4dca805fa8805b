// Why an item is where it is: one sentence, the parts that add up, what the stages moved, and the events behind it.

import * as api from "./api.js";
import { facts } from "./card.js";
import { changed } from "./changes.js";
import { announce, bar, button, el, fill, toast } from "./dom.js";
import { openPanel } from "./panel.js";
import { count, exactWords, partClass, partWords, percent, plain, signed, stageWords, titled } from "./words.js";

const EVENTS = 6;
const SIMILAR = 5;

/** asked: as the ranking was asked for. narrow(tag): show only that tag. choose(): take it as "this". whenLost: see `openPanel`. */
export async function openWhy(placed, { asked, narrow, choose, whenLost }) {
  const body = openPanel(titled(placed), { whenLost }, el("p", { class: "hint" }, "Reading the score…"));
  const words = { item: placed.item, query: asked.query, steer: asked.steer, like: asked.like };
  let found;
  try {
    found = await api.explain(words);
  } catch (error) {
    fill(body, el("p", { class: "notice bad", role: "alert" }, error.message));
    return;
  }
  fill(
    body,
    el("p", { class: "facts" }, facts(found).map((text) => el("span", { dir: "auto" }, text))),
    el("p", { class: "sentence", dir: "auto" }, plain(found.sentence, 600)),
    sum(found),
    stages(placed),
    events(found, words),
    tags(found, narrow),
    alike(found),
    el("div", { class: "buttons" }, button("More like this", choose, { class: "quiet", icon: "more" })),
  );
  announce(plain(found.sentence, 600));
}

// --- the parts that add up ---------------------------------------------------------------------------------

function sum(found) {
  const above = Object.entries(found.above).filter(([, value]) => value).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const total = above.reduce((so_far, [, value]) => so_far + value, 0);
  const scale = Math.max(...["up", "down"].map((way) => reach(above, way)), 1e-9);
  const row = ([name, value]) =>
    el(
      "li",
      {},
      el("span", { class: `swatch ${partClass(name)}`, "aria-hidden": "true" }),
      el("span", { class: "grow" }, partWords(name)),
      el("span", { class: "figure" }, signed(value)),
    );
  return el(
    "section",
    {},
    el("h3", {}, "What adds up"),
    el("p", { class: "hint" }, "How far each part lifts it above what items get on average, or pulls it below."),
    stack(above.filter(([, value]) => value > 0), scale),
    above.some(([, value]) => value < 0) && stack(above.filter(([, value]) => value < 0), scale, "down"),
    el("ul", { class: "parts" }, above.map(row)),
    el("p", { class: "total" }, el("span", { class: "grow" }, "Together, above average"), el("span", { class: "figure" }, signed(total))),
    exactly(found),
  );
}

function reach(parts, way) {
  return parts.reduce((so_far, [, value]) => so_far + Math.max(0, way === "up" ? value : -value), 0);
}

/** One line of coloured pieces, each as long as its part. */
function stack(parts, scale, kind = "") {
  const pieces = parts.map(([name, value]) => {
    const piece = el("span", { class: `piece ${partClass(name)}`, title: `${partWords(name)}: ${signed(value)}` });
    piece.style.setProperty("--size", `${(100 * Math.abs(value)) / scale}%`);
    return piece;
  });
  return el("div", { class: `stack ${kind}`, "aria-hidden": "true" }, pieces);
}

function exactly(found) {
  const row = ([name, value]) =>
    el("tr", {}, el("th", { scope: "row" }, partWords(name), el("span", { class: "hint" }, exactWords(found.exact[name] ?? "none"))), el("td", {}, signed(value)));
  return el(
    "details",
    {},
    el("summary", {}, "The exact score"),
    el(
      "table",
      { class: "figures" },
      el("tbody", {}, Object.entries(found.parts).map(row)),
      el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "Score"), el("td", {}, signed(found.score)))),
    ),
  );
}

// --- where it stands ---------------------------------------------------------------------------------------

function stages(placed) {
  const moves = placed.moves.map((move) =>
    el(
      "li",
      {},
      el("strong", {}, `${stageWords(move.stage)}: `),
      el("span", { dir: "auto" }, plain(move.said)),
    ),
  );
  const words = moves.length
    ? `By score alone it is number ${count(placed.score_rank)}; your settings put it at ${count(placed.rank)}.`
    : `It is number ${count(placed.rank)}, where its score puts it. No setting moved it.`;
  return el("section", {}, el("h3", {}, "Where it stands"), el("p", { class: "hint" }, words), moves.length > 0 && el("ol", { class: "moves" }, moves));
}

// --- the events behind it ----------------------------------------------------------------------------------

function events(found, words) {
  if (!found.events.length) {
    return el("section", {}, el("h3", {}, "What you did"), el("p", { class: "hint" }, "No past event stands behind it."));
  }
  const most = Math.max(...found.events.map((event) => Math.abs(event.share)), 1e-9);
  const rows = found.events.map((event) => evidence(event, { most, words }));
  const rest = rows.slice(EVENTS);
  return el(
    "section",
    {},
    el("h3", {}, "What you did"),
    el("p", { class: "hint" }, "The events behind it, and how much each adds. “Without this” asks what you would see if it had not happened."),
    el("ul", { class: "evidence" }, rows.slice(0, EVENTS)),
    rest.length > 0 && el("details", {}, el("summary", {}, `${count(rest.length)} more`), el("ul", { class: "evidence" }, rest)),
  );
}

function evidence(event, { most, words }) {
  const title = titled(event);
  const answer = el("div", { class: "answer" });
  const without = async (press) => {
    const pressed = press.currentTarget;
    pressed.disabled = true;
    try {
      const found = await api.explain({ ...words, without_event: event.seq });
      fill(answer, counterfactual(found.counterfactual));
      announce(plain(found.counterfactual.said, 600));
    } catch (error) {
      fill(answer, el("p", { class: "notice bad" }, error.message));
    }
    pressed.disabled = false;
  };
  return el(
    "li",
    {},
    el("div", { class: "evidence-row" }, el("span", { class: "grow", dir: "auto" }, title), el("span", { class: "figure" }, signed(event.share))),
    bar(0, Math.abs(event.share) / most, event.share < 0 ? "negative" : "part-content"),
    button("Without this", without, { class: "plain small", "data-seq": event.seq, "aria-label": `Without this: ${plain(title, 80)}` }),
    answer,
  );
}

function counterfactual(found) {
  const ranked = (one) => el("li", {}, el("span", { class: "step" }, count(one.rank)), el("span", { class: "grow", dir: "auto" }, titled(one)));
  const list = (heading, items) =>
    items.length > 0 &&
    el("div", {}, el("h4", {}, heading), el("ul", {}, items.map(ranked)));
  return el(
    "div",
    { class: "without" },
    el("p", { dir: "auto" }, plain(found.said, 600)),
    list("Would appear", found.appeared),
    list("Would be gone", found.vanished),
  );
}

// --- its tags and its like ---------------------------------------------------------------------------------

function tags(found, narrow) {
  const edit = (tag, factor, words) => async () => {
    try {
      await api.interest(tag, factor);
      toast(`${words}: ${plain(tag, 40)}. The feed has changed.`);
      await changed("interest");
    } catch (error) {
      toast(error.message, { bad: true });
    }
  };
  const row = (tag) => {
    const named = plain(tag, 40);
    const does = (words, press) => button(words, press, { class: "plain small", "aria-label": `${words}: ${named}` });
    return el(
      "li",
      {},
      el("span", { class: "grow tag-name", dir: "auto" }, named),
      does("Only these", () => narrow(tag)),
      does("More", edit(tag, 2, "More of it")),
      does("Mute", edit(tag, 0, "Muted")),
    );
  };
  return found.tags.length > 0 && el("section", {}, el("h3", {}, "Its tags"), el("ul", { class: "tag-rows" }, found.tags.map(row)));
}

function alike(found) {
  const list = el("ul", { class: "alike" });
  const load = async (event) => {
    if (!event.currentTarget.open || list.children.length) return;
    try {
      const near = await api.similar(found.item, SIMILAR);
      fill(list, near.map((one) => el("li", {}, el("span", { class: "grow", dir: "auto" }, titled(one)), el("span", { class: "figure" }, percent(one.similarity)))));
    } catch (error) {
      fill(list, el("li", {}, error.message));
    }
  };
  return el("details", { on: { toggle: load } }, el("summary", {}, "Items whose text is nearest"), list);
}
