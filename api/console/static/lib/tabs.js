// What the tabs of one browser do together, since it has six connections to a server in HTTP/1.1, for all of them.
//
// One tab reads the feed and tells it to the others. Four connections are lines: who follows one answer takes a line, and lets
// go of it after a moment where another one waits, to go on from there at its next turn. The sixth is for all else. Over
// HTTP/2 there are lines enough. Where a page may not ask for locks (no secure context) each tab is alone.
import { root } from "./api.js";

const LINES = 4;
export const HELD_MS = 2500;

const host = "streamspool"; // of one origin, whatever prefix: connections are counted so, too
const server = `${host}${root}`; // at one origin there may be several, each under a prefix: what one tells is not of the others
const lineName = (number) => `${host} line ${number}`;
const together = !!navigator.locks && typeof BroadcastChannel === "function";
const countless = /^h[23]/.test(performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "");

class Line {
  constructor(name, free) {
    this.name = name;
    this.free = free;
  }

  /** Whether another one waits for it. */
  async wanted() {
    return !!this.name && (await navigator.locks.query()).pending.some((one) => one.name === this.name);
  }
}

/**
 * A line, which has to be freed; the one for which the fewest wait. `wait` false: null where none is free. `most`: takes
 * one of the first so many. Raises AbortError where `signal` says so.
 */
export async function takeLine({ signal, wait = true, most = LINES } = {}) {
  if (!together || countless) return new Line("", () => {});
  const { held, pending } = await navigator.locks.query();
  const taken = [...held, ...pending].map((one) => one.name);
  const load = (name) => taken.filter((one) => one === name).length;
  const names = Array.from({ length: most }, (_, number) => lineName(most - 1 - number));
  const name = names.sort((one, other) => load(one) - load(other))[0];
  return new Promise((resolve, reject) => {
    const hold = (lock) => (lock ? new Promise((free) => resolve(new Line(name, free))) : resolve(null));
    navigator.locks.request(name, wait ? { signal } : { ifAvailable: true }, hold).catch(reject);
  });
}

/** What this tab says under a name, and hears of the others. */
export class Channel {
  constructor(name, hear) {
    this.channel = together ? new BroadcastChannel(`${server} ${name}`) : null;
    if (this.channel) this.channel.onmessage = ({ data }) => hear(data);
  }

  tell(message) {
    this.channel?.postMessage(message);
  }

  close() {
    this.channel?.close();
    this.channel = null;
  }
}

/**
 * One of all tabs that are in under a name leads: it asks the server, and tells the others, one of whom follows when it leaves.
 *
 * `on.lead()` begins to ask, and returns what ends that. `on.hear(message)`: what the leader has told. `on.all()`: all that
 * a tab which joins has to know, for which `on.joined(all)` is called there; what is heard before that may be in it.
 */
export class Together {
  constructor(name, on) {
    this.name = name;
    this.on = on;
    this.end = null;
    this.learned = false;
    this.own = crypto.randomUUID?.() ?? String(Math.random());
    this.left = new AbortController();
    this.channel = new Channel(name, (message) => this.hear(message));
    this.answers = new Channel(`${name} ${this.own}`, (all) => {
      if (this.end) return;
      this.learned = true;
      on.joined(all);
    });
    if (!together) return void queueMicrotask(() => this.left.signal.aborted || this.lead());
    const hold = () => this.left.signal.aborted || new Promise((free) => this.lead(free));
    navigator.locks.request(`${server} ${name}`, { signal: this.left.signal }, hold).catch(() => {});
    this.channel.tell({ hello: this.own });
  }

  lead(free = () => {}) {
    const end = this.on.lead();
    this.end = () => {
      end();
      free();
    };
    this.channel.tell({ leads: true });
  }

  hear(message) {
    if (message.hello && this.end) this.answer(message.hello);
    else if (message.leads && !this.learned) this.channel.tell({ hello: this.own });
    else if (message.told !== undefined && !this.end) this.on.hear(message.told);
  }

  answer(asker) {
    const channel = new Channel(`${this.name} ${asker}`, () => {});
    channel.tell(this.on.all());
    channel.close();
  }

  /** To the others; of the leader. */
  tell(told) {
    if (this.end) this.channel.tell({ told });
  }

  leave() {
    this.left.abort();
    this.end?.();
    this.end = null;
    this.channel.close();
    this.answers.close();
  }
}
