// Server-sent events over fetch: a native EventSource tells neither 204 (all is read) from 503 (come again), nor why.
import { call, note, ApiError, Away } from "./api.js";
import { HELD_MS, takeLine } from "./tabs.js";

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 4000;
const SILENCE_MS = 45_000; // three keep-alives of the server

/** Yields {id, event, data} of a response's body (WHATWG HTML, "Server-sent events"). */
export async function* events(response, heard = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "" || line === "\r") {
        if (event.data !== undefined) yield event;
        event = {};
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue; // a comment, to keep the connection alive
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "").replace(/\r$/, "");
      event[name] = name === "data" && event.data !== undefined ? `${event.data}\n${value}` : value;
    }
  }
}

/** Another one waits for the line. */
class NextTurn extends Error {
  name = "AbortError";
}

/**
 * Follows a stream of events for as long as anyone wants it: resumes after the last id when the connection is lost, lets go
 * of it while the page is hidden, and goes on where it was when the page is shown.
 *
 * `on.event(event)` may return true: that was the last one. `on.state(name, problem)`: "connecting", "live", "reconnecting",
 * "waiting" for its turn among many, "hidden", "ended", or "failed" for what trying again cannot mend. `line` false: it has
 * a connection anyway.
 */
export class Following {
  constructor(path, on, { cursor = "", hides = true, line = true } = {}) {
    this.path = path;
    this.on = on;
    this.cursor = cursor;
    this.pause_ms = FIRST_PAUSE_MS;
    this.stopped = false;
    this.aborter = null;
    this.wake = null;
    this.hides = hides;
    this.line = line;
    this.shown = () => this.wake?.() || (hides && document.hidden && this.aborter?.abort());
    document.addEventListener("visibilitychange", this.shown);
    queueMicrotask(() => this.run()); // whoever makes it holds it before it says something
  }

  stop() {
    this.stopped = true;
    document.removeEventListener("visibilitychange", this.shown);
    this.aborter?.abort();
    this.wake?.();
  }

  async run() {
    if (this.stopped) return;
    this.on.state("connecting");
    while (!this.stopped) {
      if (this.hides && document.hidden) {
        this.on.state("hidden");
        await this.sleep(0);
        continue;
      }
      try {
        if (await this.turn()) return this.end("ended");
        if (!this.stopped && !(this.hides && document.hidden)) this.on.state("reconnecting", new Away());
      } catch (error) {
        if (this.stopped) return;
        if (error instanceof ApiError && error.status < 500 && error.status !== 429) return this.end("failed", error);
        if (error instanceof NextTurn) continue;
        if (error.name !== "AbortError") {
          note(error instanceof ApiError ? error : new Away());
          this.on.state("reconnecting", error);
        }
      }
      await this.sleep(this.pause_ms);
      this.pause_ms = Math.min(LONGEST_PAUSE_MS, this.pause_ms * 2);
    }
  }

  /** Once it has a line, one connection over it. True: all there will ever be has been read. */
  async turn() {
    const aborter = (this.aborter = new AbortController());
    if (!this.line) return this.once();
    let line = await takeLine({ wait: false });
    if (!line) {
      this.on.state("waiting");
      line = await takeLine({ signal: aborter.signal });
    }
    const asked = setInterval(async () => (await line.wanted()) && aborter.abort(new NextTurn()), HELD_MS);
    try {
      aborter.signal.throwIfAborted();
      return await this.once();
    } finally {
      clearInterval(asked);
      line.free();
    }
  }

  async once() {
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.aborter.abort(new Away()), SILENCE_MS);
    };
    try {
      heard();
      const headers = this.cursor ? { "last-event-id": this.cursor } : {};
      const response = await call("GET", this.path, { headers: { accept: "text/event-stream", ...headers }, signal: this.aborter.signal });
      if (response.status === 204) return true;
      this.on.state("live");
      for await (const event of events(response, heard)) {
        if (this.stopped) return false;
        this.pause_ms = FIRST_PAUSE_MS;
        const last = this.on.event(event);
        if (event.id) this.cursor = event.id;
        if (last) return true;
      }
      return false; // it was cut: a proxy or a server that stops may close a connection properly
    } finally {
      clearTimeout(timer);
      this.aborter.abort();
    }
  }

  end(state, problem) {
    document.removeEventListener("visibilitychange", this.shown);
    this.on.state(state, problem);
  }

  /** Until the time is over (0: for ever), or the page is shown again, or it is stopped. */
  sleep(ms) {
    return new Promise((resolve) => {
      const timer = ms ? setTimeout(resolve, ms) : 0;
      this.wake = () => {
        if (!this.stopped && this.hides && document.hidden) return false;
        clearTimeout(timer);
        this.wake = null;
        resolve();
        return true;
      };
    });
  }
}
