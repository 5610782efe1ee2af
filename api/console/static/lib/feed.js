// What happens on the server, for a whole tab: one list of what runs and one of what has ended of late.
//
// The server tells it (GET /v1/events). Where it keeps no events, the lists are asked for every two seconds. One of the tabs that
// look at the same asks, for all of them; one that is hidden is not among them.
import { Away, get, note, withQuery } from "./api.js";
import { Following } from "./sse.js";
import { Store } from "./store.js";
import { isRunning, streamPath } from "./streams.js";
import { Together } from "./tabs.js";

const POLL_MS = 2000;
const FIGURES_MS = 5000; // what events do not tell: how many chunks there are by now
const HOUR_S = 3600;
const PAGE = 100;
const MOST = 1000; // generations that plots are made of

const NOTHING = { running: [], ended: [], viewers: null, more: 0, state: "connecting", partial: false, problem: null, at_ms: 0 };

/** {running, ended, viewers, state, partial}: state objects, newest first. `state` is as that of `Following`, or "polling". */
export const feed = new Store(NOTHING);

let users = 0;
let looking = null;

/** Begins to look, for as long as anyone does; returns what ends it. `whose` is a tenant, or `*`. */
export function look(whose) {
  users += 1;
  if (!looking || looking.tenant !== whose) {
    looking?.stop();
    feed.set(NOTHING); // what there was is of whoever looked before
    looking = new Looking(whose);
  }
  const mine = looking;
  return () => {
    users -= 1;
    if (users || looking !== mine) return;
    looking.stop();
    looking = null;
  };
}

/** Of two ids of events, MS-NUMBER. */
function isAfter(id, other) {
  const [[ms, number], [other_ms, other_number]] = [id, other || "0-0"].map((one) => one.split("-").map(Number));
  return ms > other_ms || (ms === other_ms && number > other_number);
}

class Looking {
  constructor(tenant) {
    this.tenant = tenant;
    this.known = new Map();
    this.viewers = null;
    this.state = "connecting";
    this.problem = null;
    this.more = 0;
    this.cursor = "";
    this.filled = false;
    this.stopped = false;
    this.waiting = 0;
    this.timer = 0;
    this.tabs = null;
    this.turned = () => (document.hidden ? this.sleep() : this.join());
    document.addEventListener("visibilitychange", this.turned);
    this.turned();
  }

  stop() {
    this.stopped = true;
    document.removeEventListener("visibilitychange", this.turned);
    this.tabs?.leave();
    clearTimeout(this.waiting);
  }

  join() {
    if (this.tabs || this.stopped) return;
    const early = [];
    this.state = "connecting";
    this.tabs = new Together(`feed ${this.tenant ?? ""}`, {
      lead: () => this.lead(),
      hear: (told) => (this.tabs?.learned ? this.learn(told) : early.push(told)),
      all: () => ({ known: [...this.known.values()], viewers: this.viewers, more: this.more, state: this.state, cursor: this.cursor, filled: this.filled }),
      joined: ({ known, ...all }) => {
        this.known = new Map(known.map((one) => [one.id, one]));
        Object.assign(this, all, { problem: null });
        for (const told of early.splice(0)) if (!told.event?.id || isAfter(told.event.id, all.cursor)) this.learn(told);
        this.tell();
      },
    });
  }

  /** What it missed meanwhile it is told when it is shown again. */
  sleep() {
    this.tabs?.leave();
    this.tabs = null;
    this.state = "hidden";
    this.tell();
  }

  /** This tab asks the server. */
  lead() {
    const path = withQuery("/v1/events", { tenant: this.tenant });
    const on = { event: (event) => this.share({ event }), state: (name, problem) => this.share({ name, problem: problem?.status ?? null }, problem) };
    const following = new Following(path, on, { cursor: this.cursor, hides: false, line: false });
    if (!this.filled) this.fill();
    this.tick();
    return () => {
      following.stop();
      clearTimeout(this.timer);
    };
  }

  /** Learns something, and tells it to the other tabs. An error cannot be told; its status can. */
  share(told, problem = null) {
    this.learn(told, problem);
    this.tabs?.tell(told);
    return false;
  }

  learn({ event, name, problem: status, states, gone = [] }, problem = null) {
    if (event) {
      this.hear(event);
      if (event.id) this.cursor = event.id;
    }
    if (name) {
      this.changed(name, problem ?? (status === null ? null : Object.assign(new Away(), { status })));
      if (!this.tabs?.end && ["live", "reconnecting"].includes(name)) note(name === "live" ? null : new Away());
    }
    for (const state of states ?? []) {
      const before = this.known.get(state.id);
      if (!before || isRunning(before)) this.known.set(state.id, state);
    }
    for (const id of gone) this.known.delete(id);
    this.tell();
  }

  changed(name, problem) {
    // 404: this server keeps no events. Then the lists are asked for.
    this.state = name === "failed" && problem?.status === 404 ? "polling" : name;
    this.problem = this.state === "polling" ? null : problem;
    if (this.state === "polling" && this.tabs?.end) this.tick();
  }

  hear({ event: type, data }) {
    this[`on_${type}`]?.(JSON.parse(data));
  }

  on_snapshot({ streams, viewers, more }) {
    for (const state of [...this.known.values()]) if (isRunning(state)) this.known.delete(state.id);
    for (const one of streams) this.known.set(one.id, fromEvent(one));
    this.more = more ?? 0;
    if (viewers) this.on_viewers(viewers);
  }

  on_accepted(told) {
    this.known.set(told.id, fromEvent({ status: "queued", ...told }));
  }

  on_claimed(told) {
    this.change(told.id, (state) => ({ status: "in_progress", attempts: told.attempt, started_at: state.started_at ?? told.at_ms / 1000, timings: { ...state.timings, queued_ms: told.queued_ms } }));
  }

  on_first_chunk(told) {
    this.change(told.id, (state) => ({ served_by: told.served_by, timings: { ...state.timings, first_chunk_ms: told.ttft_ms - (state.timings.queued_ms ?? 0) } }));
  }

  on_sealed(told) {
    if (!this.known.has(told.id)) this.known.set(told.id, fromEvent({ ...told, created_at_ms: told.at_ms - (told.duration_ms ?? 0) }));
    this.change(told.id, (state) => ({
      status: told.status,
      served_by: told.served_by,
      usage: told.usage,
      cost_usd: told.cost_usd,
      ended_at: told.at_ms / 1000,
      error: told.error_code ? { code: told.error_code, status: told.error_status, message: told.error_code } : null,
      timings: { ...state.timings, total_ms: told.duration_ms, first_chunk_ms: told.ttft_ms === null ? null : Math.max(0, told.ttft_ms - (state.timings.queued_ms ?? 0)) },
    }));
  }

  on_deleted({ id }) {
    this.known.delete(id);
  }

  on_viewers({ streams }) {
    this.viewers = new Map(Object.entries(streams ?? {}));
  }

  change(id, changes) {
    const state = this.known.get(id);
    if (state) this.known.set(id, { ...state, ...changes(state) });
  }

  /** What of the last hour is there already. */
  async fill() {
    const { tabs } = this;
    let after;
    const since = Math.floor(Date.now() / 1000) - HOUR_S;
    try {
      for (let pages = 0; pages < MOST / PAGE && this.tabs === tabs; pages += 1) {
        const page = await get(withQuery("/v1/streams", { limit: PAGE, since, after, tenant: this.tenant }));
        this.share({ states: page.data });
        this.filled = !page.has_more || pages === MOST / PAGE - 1;
        if (!page.has_more) return;
        after = page.last_id;
      }
    } catch {
      // what is wrong, the feed says
    }
  }

  /** Figures of what runs; without events, all of it. */
  async tick() {
    clearTimeout(this.timer);
    const { tabs } = this;
    const polling = this.state === "polling";
    if (polling || [...this.known.values()].some(isRunning)) {
      try {
        await this.poll(polling);
      } catch (error) {
        if (polling) this.problem = error;
      }
    }
    clearTimeout(this.timer);
    if (!this.stopped && tabs && this.tabs === tabs) this.timer = setTimeout(() => this.tick(), polling ? POLL_MS : FIGURES_MS);
  }

  async poll(polling) {
    const list = async (query) => (await get(withQuery("/v1/streams", { limit: PAGE, tenant: this.tenant, ...query }))).data;
    const before = new Set([...this.known.values()].filter(isRunning).map((state) => state.id));
    const running = await list({ status: "queued,in_progress" });
    const recent = polling ? await list({ limit: 50 }) : [];
    this.share({ states: [...recent, ...running] });
    if (polling) this.problem = null;
    else if (running.length === PAGE) return; // there are more
    const alive = new Set([...running, ...recent].map((state) => state.id));
    // One that ran and is in neither list any more has ended, or is forgotten. With events, too: an answer of before its end
    // may have come after it.
    const lost = [...this.known.values()].filter((state) => isRunning(state) && before.has(state.id) && !alive.has(state.id)).slice(0, 20);
    const found = await Promise.all(lost.map((state) => this.relearn(state)));
    this.share({ states: found.filter(Boolean), gone: lost.filter((_, at) => found[at] === null).map((state) => state.id) });
  }

  /** Its state now; null: it is forgotten; undefined: not known. */
  async relearn(state) {
    try {
      return await get(streamPath(state), { headers: { accept: "application/json" } });
    } catch (error) {
      return error.status === 404 ? null : undefined;
    }
  }

  /** Soon, however much happens. */
  tell() {
    if (this.waiting || this.stopped) return;
    this.waiting = setTimeout(() => {
      this.waiting = 0;
      if (!this.stopped) this.show();
    }, 100);
  }

  show() {
    const oldest = Date.now() / 1000 - HOUR_S;
    const running = [];
    const ended = [];
    for (const one of this.known.values()) {
      if (isRunning(one)) running.push(this.viewers ? { ...one, viewers: this.viewers.get(one.id) ?? 0 } : one);
      else if (one.created_at >= oldest || one.ended_at >= oldest) ended.push(one);
      else this.known.delete(one.id);
    }
    const newest = (one, other) => other.created_at - one.created_at || (other.id < one.id ? -1 : 1);
    ended.sort(newest);
    for (const one of ended.splice(5 * MOST)) this.known.delete(one.id);
    const viewers = this.viewers && [...this.viewers.values()].reduce((sum, number) => sum + number, 0);
    feed.set({ running: running.sort(newest), ended, viewers, more: this.more, state: this.state, problem: this.problem, partial: this.known.size >= MOST, at_ms: Date.now() });
  }
}

/** A state object, as far as events tell it. */
const fromEvent = (told) => ({
  id: told.id,
  object: "stream",
  tenant: told.tenant,
  status: told.status,
  model: told.model,
  served_by: told.served_by ?? null,
  created_at: Math.floor((told.created_at_ms ?? told.at_ms) / 1000),
  started_at: null,
  ended_at: null,
  attempts: told.attempt ?? 0,
  interrupted: [],
  refused: told.refused ?? [],
  retries: told.retries ?? 0,
  chunks: null,
  position: null,
  usage: null,
  cost_usd: null,
  error: null,
  metadata: {},
  session_id: told.session_id ?? null,
  batch_id: told.batch_id ?? null,
  retried_from: told.retried_from ?? null,
  background: told.source === "background",
  viewers: 0,
  timings: { queued_ms: told.queued_ms ?? null, first_chunk_ms: told.ttft_ms === undefined || told.ttft_ms === null ? null : Math.max(0, told.ttft_ms - (told.queued_ms ?? 0)), generation_ms: null, total_ms: null },
});
