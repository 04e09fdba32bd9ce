// Asks the daemon through the dashboard, with the token that the address brought.

const KEY = "forebay-token";

/** Why an answer did not come, in words for people. */
export class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Takes the token out of the address bar, where it could be read over a shoulder. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem(KEY, token);
  history.replaceState(null, "", location.pathname);
}

function headers(body) {
  const all = { authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  if (body) all["content-type"] = "application/json";
  return all;
}

async function send(method, path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method, headers: headers(body), body: body && JSON.stringify(body), signal, cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Trouble("The dashboard does not answer. Is `forebay dashboard` still running?", 0);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => null);
  throw new Trouble(problem?.message ?? `${method} ${path}: ${response.status}`, response.status);
}

export async function get(path, signal) {
  return (await send("GET", path, undefined, signal)).json();
}

export async function change(method, path, body = {}) {
  return (await send(method, path, body)).json();
}

/** The longest line of the stream that is taken in. */
const LINE_MAX = 16 << 20;

/** Calls `told` for each message of the stream until it ends. */
export async function follow(path, told, signal) {
  const response = await send("GET", path, undefined, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    if (rest.length > LINE_MAX) throw new Trouble("A message of the stream is too long.", 0);
    let end;
    while ((end = rest.indexOf("\n")) >= 0) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 1);
      if (line.startsWith("data:")) told(JSON.parse(line.slice(5)));
    }
  }
}
