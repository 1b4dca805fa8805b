// What the person chooses about the ranking and about how long things are remembered.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { announce, byId, el, fill, toast } from "./dom.js";
import { count, number, plain } from "./words.js";

/** Sliders from 0, which is off, to 1: name, words, what it does. */
const SLIDERS = [
  ["diversity", "Diversity", "Fewer items that are much like each other in one feed."],
  ["calibration", "Balance", "The feed’s mix of tags follows the mix in your history, so that small interests keep a place."],
  ["tail", "Less known", "More room for items that few people know."],
  ["freshness", "Newness", "A bonus for items of recent years, where the catalogue says a year."],
  ["exploration", "Exploration", "Tries things whose appeal to you is not known yet, and learns from what you do with them."],
];

/** Whole numbers where 0 is "no limit": name, words, what it does. */
const LIMITS = [
  ["per_tag_cap", "Most items of one tag", "In one feed. A feed may get shorter by it."],
  ["per_creator_cap", "Most items of one creator", "In one feed, where the catalogue names creators."],
  ["retention_events", "Most events to remember", "The oldest go first, in whole training windows."],
  ["retention_days", "Days to remember events", "Older ones are dropped, in whole training windows."],
];

/** Switches: name, words, what it does. */
const SWITCHES = [
  ["personal", "Personal weights", "Learns how much each part of the score counts for you. This is learned here and never sent."],
  ["participate", "Take part in training", "Sends noisy updates, within your privacy budget. Off pauses it; see Privacy."],
];

const GROUPS = [
  ["How the feed is put together", ["diversity", "calibration", "tail", "freshness", "exploration", "per_tag_cap", "per_creator_cap"]],
  ["What is learned and sent", ["personal", "participate"]],
  ["How long things are remembered", ["retention_events", "retention_days"]],
];

/** Read the settings and show them. */
export async function openSettings() {
  const values = await api.settings();
  const controls = new Map([
    ...SLIDERS.map((given) => [given[0], slider(given, values)]),
    ...LIMITS.map((given) => [given[0], limit(given, values)]),
    ...SWITCHES.map((given) => [given[0], toggle(given, values)]),
  ]);
  const group = ([words, names]) => el("fieldset", { class: "group" }, el("legend", {}, words), names.map((name) => controls.get(name)));
  fill(byId("settings-form"), GROUPS.map(group));
}

export function startSettings() {
  byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
}

/** Keep one value; if it is refused, say why and show what holds. */
async function keep(name, value, words) {
  try {
    await api.change({ [name]: value });
    announce(`${words}: kept.`);
    await changed("setting");
  } catch (error) {
    toast(error.message, { bad: true });
    await openSettings();
    byId(`setting-${name}`).focus();
  }
}

function setting(name, words, hint, ...controls) {
  const id = `setting-${name}`;
  return el("div", { class: "setting" }, el("label", { for: id }, words), controls, el("p", { class: "hint", id: `${id}-hint` }, hint));
}

const strength = (value) => (value === 0 ? "off" : number(value));

function slider([name, words, hint], values) {
  const id = `setting-${name}`;
  const shown = el("output", { for: id }, strength(values[name]));
  const input = el("input", {
    type: "range",
    id,
    min: 0,
    max: 1,
    step: 0.05,
    value: values[name],
    "aria-describedby": `${id}-hint`,
    "aria-valuetext": strength(values[name]),
    on: {
      input: () => {
        shown.textContent = strength(Number(input.value));
        input.setAttribute("aria-valuetext", shown.textContent);
      },
      change: () => keep(name, Number(input.value), words),
    },
  });
  return setting(name, words, hint, el("span", { class: "slider" }, input, shown));
}

function limit([name, words, hint], values) {
  const id = `setting-${name}`;
  const press = (event) => {
    const input = event.currentTarget;
    if (input.value === "") input.value = "0";
    if (input.reportValidity()) keep(name, Number(input.value), words);
  };
  const input = el("input", { type: "number", id, min: 0, step: 1, inputmode: "numeric", value: values[name], "aria-describedby": `${id}-hint`, on: { change: press } });
  return setting(name, words, `${hint} 0 is no limit.`, input);
}

function toggle([name, words, hint], values) {
  const id = `setting-${name}`;
  const press = (event) => keep(name, event.currentTarget.checked, words);
  const input = el("input", { type: "checkbox", role: "switch", id, checked: values[name], "aria-describedby": `${id}-hint`, on: { change: press } });
  return el("div", { class: "switch-row" }, input, el("label", { for: id }, words), el("p", { class: "hint", id: `${id}-hint` }, hint));
}

/** The line at the foot of every page. */
export function drawAbout(status) {
  const engine = { full: "full model", int8: "quantised model", student: "small model" }[status.engine] ?? plain(status.engine, 20);
  byId("about").textContent = `homerank ${plain(status.version, 20)}, profile ${plain(status.profile, 40)}: ${count(status.items)} items, ${engine}. Everything on this page comes from this device.`;
}
