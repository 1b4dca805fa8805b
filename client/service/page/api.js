// The service, one function per call. Nothing is asked of any other place, and nothing is kept in the browser.

/** What the service said when it could not do something. status: HTTP status, 0 when it did not answer. */
export class Refused extends Error {
  constructor(words, status) {
    super(words);
    this.status = status;
  }
}

async function send(method, path, { body = null, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Refused("The service does not answer. Is “homerank-client serve” still running?", 0);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    throw new Refused("This page’s key is no longer valid. Open the link that “homerank-client serve” prints.", 401);
  }
  throw new Refused(await reason(answer), answer.status);
}

async function reason(answer) {
  try {
    const said = await answer.json();
    if (typeof said.error === "string") return said.error;
  } catch {
    // not JSON: the status is all there is to say
  }
  return `The service answered ${answer.status}.`;
}

const get = async (path) => (await send("GET", path)).json();

async function ask(method, path, body, headers = {}) {
  const given = { body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } };
  return (await send(method, path, given)).json();
}

export const status = () => get("/v1/status");

/** A key of its own for each press, so that a repeated request is one event. */
export const record = (item, kind) =>
  ask("POST", "/v1/events", { item, kind }, { "Idempotency-Key": crypto.randomUUID() });

export const recommend = (asked) => ask("POST", asked.query ? "/v1/search" : "/v1/recommend", asked);
export const explain = (asked) => ask("POST", "/v1/explain", asked);
export const similar = (item, k) => ask("POST", "/v1/similar", { item, k });
export const feedback = (item, verdict) => ask("POST", "/v1/feedback", { item, verdict });
export const interests = () => get("/v1/interests");
export const interest = (tag, factor) => ask("PUT", "/v1/interests", { tag, factor });
export const refused = () => get("/v1/not-interested");
export const privacy = (limit) => get(`/v1/privacy?limit=${Number(limit)}`);
export const settings = () => get("/v1/settings");
export const change = (values) => ask("PATCH", "/v1/settings", values);
export const forget = (confirm) => ask("POST", "/v1/forget", { confirm });

export const history = (limit, before = null) =>
  get(`/v1/history?limit=${Number(limit)}${before === null ? "" : `&before=${Number(before)}`}`);

export const exported = async () => (await send("POST", "/v1/export")).blob();

export async function imported(file, what, user) {
  const given = new URLSearchParams(user ? { what, user } : { what });
  const headers = { "Content-Type": "application/zip" };
  return (await send("POST", `/v1/import?${given}`, { body: file, headers })).json();
}
