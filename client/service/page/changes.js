// Who wants to know that something changed: a view subscribes, whoever changed something tells.

const listeners = new Set();

/** Call `listener(what)` after each change. what: "event", "interest", "verdict", "setting" or "everything". */
export function onChange(listener) {
  listeners.add(listener);
}

/** Tell that something changed; resolves when all listeners are done with it. */
export async function changed(what) {
  await Promise.all([...listeners].map((listener) => listener(what)));
}
