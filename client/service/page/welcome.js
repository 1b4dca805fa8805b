// The first screen of a person of whom nothing is known: choose a few tags, and the first feed leans to them.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { byId, el, fill, toast } from "./dom.js";
import { count, plain } from "./words.js";

const BOOST = 4;
const SHOWN = 48;

const chosen = new Set();
let known = [];
let passed = false;

/** Whether to show this screen: nothing happened yet, nothing was chosen, and it was not skipped. */
export function isNew(status, interests) {
  return !passed && status.events === 0 && interests.interests.length === 0;
}

/** Let the screen appear again, as after forgetting. */
export function startOver() {
  passed = false;
  chosen.clear();
}

/** Show the tags of the catalogue. */
export function openWelcome(interests) {
  known = interests.catalogue;
  byId("welcome-find").value = "";
  draw();
}

/** done: called when the person has chosen or skipped. */
export function startWelcome(done) {
  const leave = () => {
    passed = true;
    done();
  };
  byId("welcome-find").addEventListener("input", draw);
  byId("welcome-skip").addEventListener("click", leave);
  byId("welcome-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      for (const tag of chosen) await api.interest(tag, BOOST);
    } catch (error) {
      toast(error.message, { bad: true });
      return;
    }
    await changed("interest");
    leave();
  });
}

function draw() {
  const wanted = byId("welcome-find").value.trim().toLocaleLowerCase();
  const found = known.filter(([tag]) => tag.toLocaleLowerCase().includes(wanted));
  const first = found.filter(([tag]) => chosen.has(tag));
  const shown = [...first, ...found.filter(([tag]) => !chosen.has(tag)).slice(0, SHOWN)];
  fill(byId("welcome-tags"), shown.map(([tag, items], place) => choice(tag, items, place)));
  const left = found.length - shown.length;
  byId("welcome-left").textContent = left > 0 ? `and ${count(left)} more; type to find them` : "";
  tell();
}

function choice(tag, items, place) {
  const id = `welcome-${place}`;
  const press = (event) => {
    if (event.currentTarget.checked) chosen.add(tag);
    else chosen.delete(tag);
    tell();
  };
  return el(
    "span",
    { class: "pill-choice" },
    el("input", { type: "checkbox", id, checked: chosen.has(tag), on: { change: press } }),
    el("label", { class: "pill", for: id }, el("span", { dir: "auto" }, plain(tag, 40)), el("span", { class: "hint" }, count(items))),
  );
}

function tell() {
  byId("welcome-start").textContent = chosen.size ? `Show my feed (${count(chosen.size)} chosen)` : "Show my feed";
}
