// The person's data: out as a file, in from a file, and away for good.

import * as api from "./api.js";
import { changed } from "./changes.js";
import { announce, byId, el, fill, show, toast } from "./dom.js";
import { count, many, plain, tableWords } from "./words.js";

/** What has to be typed, as the service asks for it. */
const CONFIRM = "forget everything";

/** Listen to the buttons. forgotten: called when everything is gone. */
export function startOwnData(forgotten) {
  byId("export").addEventListener("click", download);
  byId("import-form").addEventListener("submit", takeIn);
  byId("import-what").addEventListener("change", () => show(byId("import-user-field"), byId("import-what").value === "history"));
  startForget(forgotten);
}

async function busy(pressed, work) {
  pressed.disabled = true;
  try {
    await work();
  } catch (error) {
    toast(error.message, { bad: true });
  }
  pressed.disabled = false;
  pressed.focus();
}

async function download(event) {
  await busy(event.currentTarget, async () => {
    const address = URL.createObjectURL(await api.exported());
    const day = new Date().toISOString().slice(0, 10);
    el("a", { href: address, download: `homerank-export-${day}.zip` }).click();
    window.setTimeout(() => URL.revokeObjectURL(address), 60_000);
    toast("Your data is in your downloads. Keep it as private as a diary.");
  });
}

async function takeIn(event) {
  event.preventDefault();
  const [file] = byId("import-file").files;
  const what = byId("import-what").value;
  const user = what === "history" ? byId("import-user").value.trim() : "";
  await busy(event.submitter ?? byId("import-file"), async () => {
    const done = await api.imported(file, what, user);
    const words = { history: many(done.count, "event"), catalogue: many(done.count, "item") }[done.what];
    toast(words ? `Imported ${words}.` : "Imported the model; it serves from now on.");
    event.target.reset();
    show(byId("import-user-field"));
    await changed("everything");
  });
}

// --- forgetting --------------------------------------------------------------------------------------------

function startForget(forgotten) {
  const box = byId("forget");
  const typed = byId("forget-words");
  const said = () => typed.value.trim().toLocaleLowerCase() === CONFIRM;
  byId("forget-open").addEventListener("click", () => {
    typed.value = "";
    byId("forget-go").disabled = true;
    show(byId("forget-trouble"), false);
    show(byId("forget-form"));
    show(byId("forgotten"), false);
    byId("forget-heading").textContent = "Forget everything?";
    box.showModal();
    typed.focus();
  });
  typed.addEventListener("input", () => {
    byId("forget-go").disabled = !said();
  });
  byId("forget-cancel").addEventListener("click", () => box.close());
  byId("forgotten-done").addEventListener("click", () => box.close());
  byId("forget-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!said()) return;
    byId("forget-go").disabled = true;
    try {
      prove(await api.forget(CONFIRM));
    } catch (error) {
      byId("forget-trouble").textContent = error.message;
      show(byId("forget-trouble"));
      byId("forget-go").disabled = false;
      return;
    }
    await forgotten();
  });
}

/** Show what is gone, how that was checked, and what is kept and why. */
function prove(done) {
  const rows = Object.entries(done.before).map(([table, before]) =>
    el("tr", {}, el("th", { scope: "row" }, tableWords(table)), el("td", {}, count(before)), el("td", {}, count(done.after[table] ?? 0))),
  );
  const head = ["What", "Before", "Now"].map((words) => el("th", { scope: "col" }, words));
  const files = done.files.length ? `Removed as whole files: ${done.files.map((name) => plain(name, 60)).join(", ")}.` : "There were no other files to remove.";
  const searched = `${many(done.words_searched, "word")} of your data ${done.words_searched === 1 ? "was" : "were"} searched for in the bytes that are left. None was found.`;
  byId("forget-heading").textContent = "Everything is forgotten";
  fill(
    byId("forgotten-proof"),
    el("table", { class: "figures" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)),
    el("p", {}, searched),
    el("p", {}, files),
    el("h3", {}, "What is kept, and why"),
    el("p", {}, plain(done.kept, 800)),
  );
  show(byId("forget-form"), false);
  show(byId("forgotten"));
  fill(byId("toasts"));
  byId("forget-heading").focus();
  announce(`Everything is forgotten. ${searched}`);
}
