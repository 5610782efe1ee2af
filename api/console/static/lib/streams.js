// What pages do with a generation: where it stands, how it is watched, and the short ends of those that are not opened.
import { Answer } from "./answer.js";
import { root, session, withQuery } from "./api.js";
import { Following } from "./sse.js";
import { Store } from "./store.js";

export const RUNNING = ["queued", "in_progress"];
export const isRunning = (state) => RUNNING.includes(state.status);

/** A route of one generation, of whichever tenant it is. Only an admin meets those of others. */
export function streamPath(state, rest = "", query = {}) {
  const other = state.tenant && state.tenant !== session.value.tenant ? { tenant: state.tenant } : {};
  return withQuery(`/v1/streams/${encodeURIComponent(state.id)}${rest}`, { ...other, ...query });
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

const SLOTS = 2; // a browser has six connections to a host in HTTP/1.1, for all its tabs together
const HELD_MS = 2500;
const BEFORE = 40; // chunks that are read again, so that there is a line to show
const KEPT = 400; // characters

/** The last words of answers that run: of two at a time live, and in turns where more are wanted. */
export class Tails {
  constructor() {
    this.texts = new Store(new Map());
    this.wanted = new Map();
    this.slots = new Map(); // id → {following, since_ms}
    this.cursors = new Map();
    this.timer = setInterval(() => this.share(), 1000);
  }

  /** `states` are those in view, the first before the others. */
  want(states) {
    this.wanted = new Map(states.map((state) => [state.id, state]));
    for (const id of this.slots.keys()) if (!this.wanted.has(id)) this.free(id);
    for (const id of this.cursors.keys()) if (!this.wanted.has(id)) this.cursors.delete(id);
    this.share();
  }

  share() {
    const waiting = [...this.wanted.keys()].filter((id) => !this.slots.has(id));
    if (!waiting.length) return;
    for (const [id, slot] of this.slots) if (performance.now() - slot.since_ms > HELD_MS && this.slots.size >= SLOTS) this.free(id);
    for (const id of waiting.sort((one, other) => this.seen(one) - this.seen(other))) {
      if (this.slots.size >= SLOTS) return;
      this.open(this.wanted.get(id));
    }
  }

  seen(id) {
    return this.cursors.get(id)?.at_ms ?? 0;
  }

  open(state) {
    const kept = this.cursors.get(state.id);
    const [epoch, seq] = (state.position ?? "0-0").split("-").map(Number);
    const cursor = kept?.cursor ?? (seq > BEFORE ? `${epoch}-${seq - BEFORE}` : "");
    const following = new Following(
      streamPath(state),
      {
        event: (event) => this.hear(state.id, event, following),
        state: () => {},
      },
      { cursor },
    );
    this.slots.set(state.id, { following, since_ms: performance.now() });
  }

  hear(id, event, following) {
    if (event.data === "[DONE]") return true;
    const answer = new Answer();
    answer.take(event);
    const before = event.event === "attempt" ? "" : (this.texts.value.get(id) ?? "");
    const text = (before + answer.text).slice(-KEPT);
    if (text !== before) this.texts.set(new Map(this.texts.value).set(id, text));
    this.cursors.set(id, { cursor: event.id || following.cursor, at_ms: performance.now() });
    return false;
  }

  free(id) {
    this.slots.get(id)?.following.stop();
    this.slots.delete(id);
    const kept = this.cursors.get(id);
    this.cursors.set(id, { cursor: kept?.cursor, at_ms: performance.now() });
  }

  stop() {
    clearInterval(this.timer);
    for (const id of [...this.slots.keys()]) this.free(id);
  }
}

export const permalink = (id) => `${location.origin}${root}/console/r/${id}`;
