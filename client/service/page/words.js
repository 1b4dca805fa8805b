// Plain English for what the service says in names and numbers, and foreign text made safe to look at.

/** Control, direction and invisible characters; joiners stay, because scripts and emoji need them. */
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
const LONGEST = 300;

/** Text of a catalogue or a person on one line, without characters that only confuse, cut to `limit` characters. */
export function plain(text, limit = LONGEST) {
  const clean = String(text).slice(0, 4 * limit).replace(UNSEEN, " ").replace(/\s+/g, " ").trim();
  const letters = Array.from(clean);
  return letters.length > limit ? `${letters.slice(0, limit - 1).join("")}…` : clean;
}

/** A title, never empty. */
export function titled(card) {
  return plain(card.title) || plain(card.item, 60) || "(no title)";
}

/** Parts of a score: what each says, and the class of its colour. */
const PARTS = {
  content: "Reads like what you turned to",
  prior: "What people went on to after that",
  adapter: "What the trained model expects of you",
  popularity: "Popular with everyone",
  query: "Matches your search",
  interests: "Tags you asked more or less of",
  steering: "Fits what you asked for in words",
  tail: "Less well known, as you asked",
  personal: "Your own taste for what is popular or rare",
};

export const partWords = (name) => PARTS[name] ?? plain(name, 40);
export const partClass = (name) => (name in PARTS ? `part-${name}` : "part-other");

const EXACT = {
  exact: "its split over your events is exact",
  apportioned: "its split over your events adds up, by a rule",
  none: "not made of single events",
};
export const exactWords = (name) => EXACT[name] ?? plain(name, 40);

const STAGES = {
  pool: "Filling up",
  exploration: "Exploration",
  freshness: "Newness",
  mmr: "Diversity",
  dpp: "Diversity",
  calibration: "Balance",
  tail_share: "Less known",
  cap_per_tag: "Limit per tag",
  cap_per_creator: "Limit per creator",
};
export const stageWords = (name) => STAGES[name] ?? plain(name, 40);

const KINDS = {
  impression: "Shown",
  click: "Opened",
  like: "Liked",
  purchase: "Bought",
  skip: "Skipped",
  rating: "Rated",
};
export const kindWords = (name) => KINDS[name] ?? plain(name, 40);

const PHASES = {
  popularity: "how often items occur",
  prior: "what follows what",
  train: "training",
  validate: "comparing models",
  install: "receiving a model",
};
export const phaseWords = (name) => PHASES[name] ?? plain(name, 40);

const TRAINING = {
  off: "no training is set up here",
  idle: "waiting for a round",
  training: "a round is under way",
  paused: "paused",
};
export const trainingWords = (name) => TRAINING[name] ?? plain(name);

const TABLES = {
  events: "Events",
  attributes: "Things known about you",
  interests: "Edited interests",
  verdicts: "Hidden items",
  requests: "Keys of requests",
};
export const tableWords = (name) => TABLES[name] ?? plain(name, 40);

const UNITS = {
  event: ["Any stretch of what you did", "protects a window of events, such as one evening"],
  user: ["Everything you did", "protects whether you are in the data at all"],
};
export const unitWords = (name) => UNITS[name] ?? [plain(name, 40), ""];

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const tiny = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const both = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2, signDisplay: "exceptZero" });
const percents = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });
const moments = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const count = (value) => whole.format(value);
export const number = (value) => fine.format(value);
export const times = (value) => (value >= 10 ? whole : short).format(value);
export const small = (value) => tiny.format(value);
export const signed = (value) => both.format(value).replace("-", "−");
export const percent = (value) => (value > 0 && value < 0.01 ? "under 1%" : percents.format(value));

/** "1 event", "2 events". */
export const many = (value, one, several = `${one}s`) => `${count(value)} ${value === 1 ? one : several}`;

/** Seconds UTC as a date and time where the person is; null is not known. */
export const moment = (seconds) => (seconds === null ? "time not known" : moments.format(new Date(1_000 * seconds)));

/** A number of bytes, in units of 1,000. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB"];
  const step = Math.min(units.length - 1, value < 1_000 ? 0 : Math.floor(Math.log10(value) / 3));
  return `${fine.format(value / 1_000 ** step)} ${units[step]}`;
}

/** How an adapter is called: its run and round, or that there is none. */
export function adapterWords(adapter) {
  const named = ["run", "round"].filter((key) => adapter[key]).map((key) => `${key} ${plain(adapter[key], 40)}`);
  return named.length ? named.join(", ") : "none yet";
}
