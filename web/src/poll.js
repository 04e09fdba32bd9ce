// Asks again and again while a view is shown.

import { get } from "./ask.js";

/** Calls `told(answer)` or `failed(error)` now and every so many milliseconds; gives the end of it. */
export function poll(path, everyMs, told, failed) {
  const ending = new AbortController();
  let timer;
  const ask = async () => {
    try {
      told(await get(typeof path === "function" ? path() : path, ending.signal));
    } catch (error) {
      if (!ending.signal.aborted) failed(error);
    }
    if (!ending.signal.aborted) timer = setTimeout(ask, everyMs);
  };
  ask();
  return () => {
    ending.abort();
    clearTimeout(timer);
  };
}
