// Interests: tags with their weights, and how much more or less of each the person wants.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { bar, byId, el, fill, show, toast } from "./dom.js";
import { count, many, number, percent, plain, times } from "./words.js";

/** What a person can choose, by the factor that it stands for. */
const CHOICES = [
  [0, "Mute"],
  [0.5, "Less"],
  [1, "As it is"],
  [2, "More"],
  [4, "Much more"],
];
const SHOWN = 24;
const OFFERED = 2_000;

let all = false;

/** Read the interests and show them. */
export async function openInterests() {
  draw(await api.interests());
}

export function startInterests() {
  byId("interest-all").addEventListener("click", async () => {
    all = true;
    const first = byId("interest-rows").children.length;
    try {
      await openInterests();
    } catch (error) {
      toast(error.message, { bad: true });
    }
    byId("interest-rows").children[first]?.querySelector("input:checked")?.focus();
  });
  byId("interest-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const tag = byId("interest-tag").value.trim();
    if (tag) edit(tag, Number(event.submitter?.value ?? 2)).then((done) => done && event.target.reset());
  });
}

/** Keep one edit; whether it was taken. */
async function edit(tag, factor) {
  const focus = document.activeElement?.id;
  let found;
  try {
    found = await api.interest(tag, factor);
  } catch (error) {
    toast(error.message, { bad: true });
    await openInterests();
    return false;
  }
  draw(found);
  if (focus) document.getElementById(focus)?.focus();
  const words = CHOICES.find(([value]) => value === factor)?.[1] ?? `${number(factor)} times`;
  toast(`${plain(tag, 40)}: ${words}.`);
  await changed("interest");
  return true;
}

function draw(found) {
  const edited = found.interests.filter((one) => one.factor !== 1);
  const rest = found.interests.filter((one) => one.factor === 1);
  const shown = all ? rest : rest.slice(0, SHOWN);
  const most = Math.max(...found.interests.map((one) => one.weight), 2);
  fill(byId("interest-rows"), [...edited, ...shown].map((one, place) => row(one, { most, place })));
  byId("interest-all").textContent = `Show all ${count(found.interests.length)}`;
  show(byId("interest-all"), shown.length < rest.length);
  show(byId("interest-empty"), found.interests.length === 0);
  fill(
    byId("interest-known"),
    found.catalogue.slice(0, OFFERED).map(([tag, items]) => el("option", { value: tag }, many(items, "item"))),
  );
}

function row(one, { most, place }) {
  const named = plain(one.tag, 60);
  const usual = one.weight >= 1 ? `${times(one.weight)} times the usual` : `${percent(one.weight)} of the usual`;
  const words = one.share > 0 ? `${percent(one.share)} of what you did lately, ${usual}` : "nothing in your history yet";
  return el(
    "li",
    { class: one.factor === 0 ? "interest muted" : "interest", "data-tag": one.tag },
    el("div", { class: "grow" }, el("span", { class: "row-name", dir: "auto" }, named), bar(0, one.weight / most), el("span", { class: "hint" }, words)),
    choices(one, { named, place }),
  );
}

function choices(one, { named, place }) {
  const options = CHOICES.some(([factor]) => factor === one.factor)
    ? CHOICES
    : [...CHOICES, [one.factor, `× ${number(one.factor)}`]].sort((a, b) => a[0] - b[0]);
  return el(
    "fieldset",
    { class: "segments" },
    el("legend", { class: "unseen", dir: "auto" }, `How much of ${named}`),
    options.map(([factor, words]) => {
      const id = `interest-${place}-${count(100 * factor)}`;
      const press = () => edit(one.tag, factor);
      const input = el("input", { type: "radio", name: `interest-${place}`, id, value: factor, checked: factor === one.factor, on: { change: press } });
      return el("span", {}, input, el("label", { for: id }, words));
    }),
  );
}
