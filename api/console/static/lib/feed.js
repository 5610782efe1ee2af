// What happens on the server, for a whole tab: one list of what runs and one of what has ended of late.
//
// The server tells it (GET /v1/events). Where it keeps no events, the lists are asked for every two seconds.
import { get, withQuery } from "./api.js";
import { Following } from "./sse.js";
import { Store } from "./store.js";
import { isRunning } from "./streams.js";

const POLL_MS = 2000;
const FIGURES_MS = 5000; // what events do not tell: how many chunks there are by now
const HOUR_S = 3600;
const MOST = 1000; // generations that plots are made of

/** {running, ended, viewers, state, partial}: state objects, newest first. `state` is as that of `Following`, or "polling". */
export const feed = new Store({ running: [], ended: [], viewers: null, more: 0, state: "connecting", partial: false, problem: null, at_ms: 0 });

let users = 0;
let looking = null;

/** Begins to look, for as long as anyone does; returns what ends it. `whose` is a tenant, or `*`. */
export function look(whose) {
  users += 1;
  if (!looking || looking.tenant !== whose) {
    looking?.stop();
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

class Looking {
  constructor(tenant) {
    this.tenant = tenant;
    this.known = new Map();
    this.viewers = null;
    this.state = "connecting";
    this.problem = null;
    this.more = 0;
    this.stopped = false;
    this.waiting = 0;
    this.timer = 0;
    this.shown = () => !document.hidden && this.tick();
    document.addEventListener("visibilitychange", this.shown);
    this.fill();
    this.following = new Following(withQuery("/v1/events", { tenant }), {
      event: (event) => this.hear(event),
      state: (name, problem) => this.changed(name, problem ?? null),
    });
    this.tick();
  }

  stop() {
    this.stopped = true;
    this.following.stop();
    clearTimeout(this.timer);
    clearTimeout(this.waiting);
    document.removeEventListener("visibilitychange", this.shown);
  }

  changed(name, problem) {
    // 404: this server keeps no events. Then the lists are asked for.
    this.state = name === "failed" && problem?.status === 404 ? "polling" : name;
    this.problem = this.state === "polling" ? null : problem;
    if (this.state === "polling") this.tick();
    this.tell();
  }

  hear({ event: type, data }) {
    const told = JSON.parse(data);
    const act = this[`on_${type}`];
    if (act) act.call(this, told);
    this.tell();
    return false;
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
    let after;
    const since = Math.floor(Date.now() / 1000) - HOUR_S;
    try {
      for (let pages = 0; pages < MOST / 100 && !this.stopped; pages += 1) {
        const page = await get(withQuery("/v1/streams", { limit: 100, since, after, tenant: this.tenant }));
        for (const state of page.data) this.known.set(state.id, state);
        this.tell();
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
    const polling = this.state === "polling";
    if (!this.stopped && !document.hidden && (polling || [...this.known.values()].some(isRunning))) {
      try {
        await this.poll(polling);
      } catch (error) {
        if (polling) this.problem = error;
      }
    }
    clearTimeout(this.timer);
    if (!this.stopped) this.timer = setTimeout(() => this.tick(), polling ? POLL_MS : FIGURES_MS);
  }

  async poll(polling) {
    const list = async (query) => (await get(withQuery("/v1/streams", { limit: 100, tenant: this.tenant, ...query }))).data;
    const running = await list({ status: "queued,in_progress" });
    const recent = polling ? await list({ limit: 50 }) : [];
    for (const state of [...recent, ...running]) {
      const before = this.known.get(state.id);
      if (!before || isRunning(before)) this.known.set(state.id, state);
    }
    if (polling) {
      const alive = new Set([...running, ...recent].map((state) => state.id));
      // One that ran and is in neither list any more has ended, or is forgotten.
      await Promise.all([...this.known.values()].filter((state) => isRunning(state) && !alive.has(state.id)).slice(0, 20).map((state) => this.relearn(state)));
      this.problem = null;
    }
    this.tell();
  }

  async relearn(state) {
    try {
      this.known.set(state.id, await get(withQuery(`/v1/streams/${state.id}`, { tenant: state.tenant }), { headers: { accept: "application/json" } }));
    } catch (error) {
      if (error.status === 404) this.known.delete(state.id);
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
