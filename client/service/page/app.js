// Where the page starts: which view is shown, and what all views share.

import * as api from "./api.js";
import { askNothing } from "./ask.js";
import { changed, onChange } from "./changes.js";
import { byId, show } from "./dom.js";
import { leaveFeed, openFeed, startFeed } from "./feed.js";
import { drawGlance } from "./glance.js";
import { openHistory, startHistory } from "./history.js";
import { openInterests, startInterests } from "./interests.js";
import { startOwnData } from "./owndata.js";
import { startPanel } from "./panel.js";
import { openPrivacy, startPrivacy } from "./privacy.js";
import { drawAbout, openSettings, startSettings } from "./settings.js";
import { isNew, openWelcome, startOver, startWelcome } from "./welcome.js";
import { plain } from "./words.js";

const VIEWS = { feed: openFeed, interests: openInterests, history: openHistory, privacy: openPrivacy, settings: openSettings };
/** After so long without an answer the page says that it waits. */
const PATIENCE_MS = 400;
const TITLES = { feed: "Feed", interests: "Interests", history: "History", privacy: "Privacy", settings: "Settings" };

let routes = 0;

/** The view that the address names; only its name ever stands there, so the browser's history tells nothing. */
function named() {
  const name = window.location.hash.slice(1);
  return name in VIEWS ? name : "feed";
}

/** Show the view of the address. moveFocus: to its heading, after the person chose it. */
async function route({ moveFocus = false } = {}) {
  const name = named();
  const mine = ++routes;
  leaveFeed();
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[name]} · homerank`;
  show(byId("trouble"), false);
  const waiting = window.setTimeout(() => {
    if (mine !== routes) return;
    showOnly("");
    show(byId("loading"));
  }, PATIENCE_MS);
  try {
    const status = await api.status();
    const bare = status.items === 0 && name !== "privacy" && name !== "settings";
    const welcome = name === "feed" && !bare && (await isFirstTime(status));
    if (mine !== routes) return; // the person went on meanwhile
    window.clearTimeout(waiting);
    show(byId("loading"), false);
    showOnly(welcome ? "welcome" : name);
    show(byId("bare"), bare);
    if (moveFocus) {
      byId(`${welcome ? "welcome" : name}-heading`).focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
    if (!welcome && !bare) await VIEWS[name]();
  } catch (error) {
    if (mine !== routes) return;
    show(byId("loading"), false);
    showOnly(name);
    byId("trouble").textContent = error.message;
    show(byId("trouble"));
  } finally {
    window.clearTimeout(waiting);
  }
}

async function isFirstTime(status) {
  const interests = await api.interests();
  const first = isNew(status, interests);
  if (first) openWelcome(interests);
  return first;
}

function showOnly(name) {
  for (const view of ["welcome", ...Object.keys(VIEWS)]) show(byId(`view-${view}`), view === name);
}

async function drawFrame() {
  try {
    const status = await api.status();
    await drawGlance(status);
    drawAbout(status);
    byId("damaged").textContent = status.damaged ? `This needs a look: ${plain(status.damaged, 600)}` : "";
    show(byId("damaged"), Boolean(status.damaged));
  } catch {
    // the view that is open says what is wrong
  }
}

/** After forgetting: as on the first day. */
async function startAfresh() {
  askNothing();
  startOver();
  await changed("everything");
  await route();
}

startPanel();
startFeed();
startInterests();
startHistory();
startPrivacy();
startSettings();
startOwnData(startAfresh);
startWelcome(() => route({ moveFocus: true }));
onChange(drawFrame);
window.addEventListener("hashchange", () => route({ moveFocus: true }));
byId("skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view, not the place in it
  byId("main").focus();
});
route();
drawFrame();
