/**
 * The relay's admin listener: its stream of snapshots, and questions asked of it, with the token where there is one.
 *
 * An EventSource cannot send a header, so the stream is read with fetch. The token stays in this tab
 * (sessionStorage), and goes nowhere but to the origin that the page came from.
 */

const KEY = "relay-admin-token";
const SILENCE_MS = 5000; // the relay speaks once a second
const BACKOFF_MS = { first: 500, most: 4000 };

const headers = () => {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
};

/** Keep the token for this tab; false where it cannot be one. */
export function keepToken(token) {
  const fits = /^[\x21-\x7e]+$/.test(token); // what a header may hold
  if (fits) sessionStorage.setItem(KEY, token);
  return fits;
}

/** What the relay answers; an Error with its words where it refuses. `body` given: POST. */
export async function ask(path, body) {
  const options = { headers: headers(), cache: "no-store" };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.error.message);
  return document;
}

/**
 * Listen for ever.
 *
 * @param {{past: Function, snapshot: Function, gone: (why: string) => void,
 *   refused: (hadToken: boolean) => Promise<void>}} on `refused` resolves when it is worth another try
 */
export async function listen(on) {
  for (let attempt = 0; ; attempt++) {
    try {
      await stream((event, data) => {
        attempt = 0;
        on[event]?.(data);
      }, on.refused);
    } catch (error) {
      on.gone(error instanceof Refusal ? error.message : "");
    }
    await pause(Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** attempt) * (0.5 + Math.random() / 2));
  }
}

class Refusal extends Error {}

/** One connection, until it ends: always by an error, or after a 401. */
async function stream(tell, refused) {
  const silence = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  heard();
  try {
    const sent = headers();
    const answer = await fetch("admin/events", { headers: sent, cache: "no-store", signal: silence.signal });
    if (answer.status === 401) {
      clearTimeout(timer);
      sessionStorage.removeItem(KEY);
      await refused("Authorization" in sent);
      return;
    }
    if (!answer.ok) throw new Refusal((await answer.json()).error.message);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the stream has ended");
      heard();
      const frames = (text + value).split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        const [, event, data] = /^event: ?(.*)\ndata: ?(.*)$/m.exec(frame) ?? [];
        if (event) tell(event, JSON.parse(data));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

/** So many milliseconds, or until the network or the tab is back. */
const pause = (ms) =>
  new Promise((resolve) => {
    const done = new AbortController();
    const end = () => {
      done.abort();
      resolve();
    };
    const timer = setTimeout(end, ms);
    done.signal.addEventListener("abort", () => clearTimeout(timer));
    addEventListener("online", end, { signal: done.signal });
    document.addEventListener("visibilitychange", () => document.hidden || end(), { signal: done.signal });
  });
