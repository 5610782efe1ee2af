// What pages do with a generation: where it stands, how it is watched, and the short ends of those that are not opened.
import { Answer } from "./answer.js";
import { get, root, session, withQuery } from "./api.js";
import { useEffect, useState } from "./dom.js";
import { Following } from "./sse.js";
import { Store } from "./store.js";
import { Channel, HELD_MS, takeLine } from "./tabs.js";

export const RUNNING = ["queued", "in_progress"];
export const isRunning = (state) => RUNNING.includes(state.status);

/** A route of one generation, of whichever tenant it is. Only an admin meets those of others. */
export function streamPath(state, rest = "", query = {}) {
  const other = state.tenant && state.tenant !== session.value.tenant ? { tenant: state.tenant } : {};
  return withQuery(`/v1/streams/${encodeURIComponent(state.id)}${rest}`, { ...other, ...query });
}

const STATE_MS = 2000;

/** {state, error, at_ms, reload} of a route that tells a generation's state: again and again while it runs, and while the server is
 * away; the last one stays. `path` null: asks nothing. */
export function useGeneration(path) {
  const [held, hold] = useState({ state: null, error: null, at_ms: 0 });
  const [asked, again] = useState(0);
  useEffect(() => {
    if (!path) return undefined;
    let timer = 0;
    let stopped = false;
    let known = false;
    const later = () => (timer = setTimeout(ask, STATE_MS));
    const ask = async () => {
      if (document.hidden && known) return later();
      try {
        const state = await get(path, { headers: { accept: "application/json" } });
        if (stopped) return;
        known = true;
        hold({ state, error: null, at_ms: Date.now() });
        if (isRunning(state)) later();
      } catch (error) {
        if (stopped) return;
        hold((now) => ({ ...now, error }));
        if (!error.status || error.status >= 500 || error.status === 429) later();
      }
    };
    ask();
    return () => {
      stopped = true; // what has been asked is older than what is asked next
      clearTimeout(timer);
    };
  }, [path, asked]);
  return { ...held, reload: () => again((count) => count + 1) };
}

/** Follows one answer from its start, and says so at most once a frame: {answer, state, problem}. */
export class Watching {
  constructor(state) {
    this.store = new Store({ answer: new Answer(), state: "connecting", problem: null, turn: 0 });
    this.following = new Following(streamPath(state), {
      event: (event) => {
        const last = this.store.value.answer.take(event);
        this.tell({});
        return last;
      },
      state: (name, problem = null) => this.tell({ state: name, problem }),
    });
  }

  tell(changes) {
    const now = this.store.value;
    this.store.set({ ...now, ...changes, turn: now.turn + 1 });
  }

  stop() {
    this.following.stop();
  }
}

const SLOTS = 2; // of the lines, for all tabs
const BEFORE = 40; // chunks that are read again, so that there is a line to show
const KEPT = 400; // characters
const TEXTS = 60;
const TELL_MS = 250;

/** The last words of answers that run: of two at a time live, by whichever tab, and in turns where more are wanted. */
export class Tails {
  constructor() {
    this.texts = new Store(new Map());
    this.wanted = new Map();
    this.slots = new Map(); // id → {following, line, since_ms}
    this.cursors = new Map();
    this.news = new Set();
    this.sharing = false;
    this.tabs = new Channel("tails", (told) => this.told(told));
    this.timers = [setInterval(() => this.share(), 1000), setInterval(() => this.tell(), TELL_MS)];
    this.turned = () => this.share();
    document.addEventListener("visibilitychange", this.turned);
  }

  /** `states` are those in view, the first before the others. */
  want(states) {
    this.wanted = new Map(states.map((state) => [state.id, state]));
    for (const id of this.slots.keys()) if (!this.wanted.has(id)) this.free(id);
    for (const id of this.cursors.keys()) if (!this.wanted.has(id)) this.cursors.delete(id);
    this.share();
  }

  async share() {
    if (this.sharing || !this.timers.length) return;
    this.sharing = true;
    try {
      if (document.hidden) for (const id of [...this.slots.keys()]) this.free(id);
      if (document.hidden) return;
      for (const [id, slot] of this.slots) if (this.isOld(slot) && (await slot.line.wanted())) this.free(id);
      for (const id of this.waiting()) {
        if (this.slots.has(id)) continue;
        const line = await this.take();
        if (!line) return;
        if (this.timers.length && this.wanted.has(id)) this.open(this.wanted.get(id), line);
        else line.free();
      }
    } finally {
      this.sharing = false;
    }
  }

  /** Those that no tab has just heard of, the longest ago first. */
  waiting() {
    const ids = [...this.wanted.keys()].filter((id) => !this.slots.has(id) && performance.now() - this.seen(id) > HELD_MS);
    return ids.sort((one, other) => this.seen(one) - this.seen(other));
  }

  async take() {
    const mine = this.slots.size < SLOTS && (await takeLine({ wait: false, most: SLOTS }));
    if (mine) return mine;
    const [id] = [...this.slots].find(([, slot]) => this.isOld(slot)) ?? [];
    if (!id) return null;
    this.free(id);
    return takeLine({ wait: false, most: SLOTS });
  }

  isOld(slot) {
    return performance.now() - slot.since_ms > HELD_MS;
  }

  seen(id) {
    return this.cursors.get(id)?.at_ms ?? -Infinity;
  }

  open(state, line) {
    const kept = this.cursors.get(state.id);
    const [epoch, seq] = (state.position ?? "0-0").split("-").map(Number);
    const cursor = kept?.cursor ?? (seq > BEFORE ? `${epoch}-${seq - BEFORE}` : "");
    const following = new Following(
      streamPath(state),
      {
        event: (event) => this.hear(state.id, event, following),
        state: () => {},
      },
      { cursor, line: false },
    );
    this.slots.set(state.id, { following, line, since_ms: performance.now() });
  }

  hear(id, event, following) {
    if (event.data === "[DONE]") return true;
    const answer = new Answer();
    answer.take(event);
    const before = event.event === "attempt" ? "" : (this.texts.value.get(id) ?? "");
    this.put(id, (before + answer.text).slice(-KEPT), event.id || following.cursor);
    this.news.add(id);
    return false;
  }

  put(id, text, cursor) {
    this.cursors.set(id, { cursor, at_ms: performance.now() });
    if (text === this.texts.value.get(id)) return;
    const texts = new Map(this.texts.value).set(id, text);
    for (const old of [...texts.keys()].slice(0, texts.size - TEXTS)) texts.delete(old);
    this.texts.set(texts);
  }

  tell() {
    if (!this.news.size) return;
    this.tabs.tell([...this.news].map((id) => ({ id, text: this.texts.value.get(id) ?? "", cursor: this.cursors.get(id)?.cursor })));
    this.news.clear();
  }

  told(news) {
    for (const { id, text, cursor } of news) if (this.wanted.has(id) && !this.slots.has(id)) this.put(id, text, cursor);
  }

  free(id) {
    if (!this.slots.has(id)) return; // while it was asked whether another one waits
    const { following, line } = this.slots.get(id);
    following.stop();
    line.free();
    this.slots.delete(id);
    const kept = this.cursors.get(id);
    this.cursors.set(id, { cursor: kept?.cursor, at_ms: performance.now() });
  }

  stop() {
    this.timers.splice(0).forEach(clearInterval);
    document.removeEventListener("visibilitychange", this.turned);
    for (const id of [...this.slots.keys()]) this.free(id);
    this.tabs.close();
  }
}

export const permalink = (id) => `${location.origin}${root}/console/r/${id}`;
