// Live: what runs now, with its last words, and how the last hour went.
import { html, useEffect, useMemo, useRef, useState } from "../lib/dom.js";
import { asCurl, session, withQuery } from "../lib/api.js";
import { feed } from "../lib/feed.js";
import { compact, count, dollars, duration, lastLine } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { go, Link } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { allTenants } from "../lib/scope.js";
import { useStore } from "../lib/store.js";
import { isRunning, Tails } from "../lib/streams.js";
import { oneLine } from "../lib/text.js";
import { cancelAsked, Start } from "../ui/actions.js";
import { Status } from "../ui/icons.js";
import { Bar, Button, Card, Code, Problem, Since, Tile, copyText, useNow } from "../ui/parts.js";
import { Plot, quantile, spans } from "../ui/plot.js";
import { Table } from "../ui/table.js";

const FIVE_MIN_S = 300;
const IN_VIEW = 20; // rows whose last words are read

export function Live() {
  const shown = useStore(feed);
  const [paused, pause] = useState(false);
  const [inside, enter] = useState({ pointer: false, focus: false });
  const frozen = useRef(shown);
  if (!paused) frozen.current = shown;
  const now = frozen.current;
  useKeys({ p: () => pause(!paused) });
  return html`
    <div class="head">
      <h1>Live</h1>
      <${Button} icon=${paused ? "play" : "pause"} aria-pressed=${paused} title="Pause what moves here (p)" onClick=${() => pause(!paused)}>${paused ? "Go on" : "Pause"}<//>
    </div>
    <div class="stack">
      <${Tiles} now=${now} />
      <${Running} rows=${now.running} ended=${now.ended} state=${now.state} paused=${paused || inside.pointer || inside.focus} enter=${(how) => enter((before) => ({ ...before, ...how }))} />
      <${Hour} now=${now} />
      <${WorkerStrip} />
    </div>`;
}

function Tiles({ now }) {
  const every = useStore(allTenants) ? "*" : undefined;
  const time_s = useNow() / 1000;
  const queue = useResource(withQuery("/v1/queue", { tenant: every }), { every_ms: 3000 });
  const today = new Date().toISOString().slice(0, 10);
  const usage = useResource(withQuery("/v1/usage", { start: today, end: today, tenant: every }), { every_ms: 15_000 });
  const lanes = queue.data?.data ?? [];
  const waiting = lanes.reduce((sum, lane) => sum + lane.waiting, 0);
  const oldest = Math.min(...lanes.map((lane) => lane.oldest_at ?? Infinity));
  const last = now.ended.filter((one) => one.ended_at >= time_s - FIVE_MIN_S);
  const failed = last.filter((one) => one.status === "failed").length;
  const minute = now.ended.filter((one) => one.ended_at >= time_s - 60);
  const tokens = minute.reduce((sum, one) => sum + (one.usage?.completion_tokens ?? 0), 0);
  const running = now.running.filter((one) => one.status === "in_progress");
  const rate = running.reduce((sum, one) => sum + chunkRate(one, time_s), 0) || tokens / 60;
  const viewers = now.viewers ?? now.running.reduce((sum, one) => sum + one.viewers, 0);
  const list = "/v1/streams?status=queued,in_progress&limit=100";
  return html`<div class="tiles">
    <${Tile} label="Running" value=${count(running.length + now.more)} note=${`${count(lanes.reduce((sum, lane) => sum + lane.running, 0))} jobs of workers`} curl=${list} />
    <${Tile} label="Waiting" value=${count(waiting)} tone=${waiting ? "warn" : ""} note=${Number.isFinite(oldest) ? html`oldest <${Since} at=${oldest} />` : "nothing waits"} curl="/v1/queue" />
    <${Tile} label="Done, 5 min" value=${count(last.length - failed)} note=${`${count(now.ended.length)} in the last hour`} curl=${`/v1/streams?since=${Math.floor(time_s - FIVE_MIN_S)}&limit=100`} />
    <${Tile} label="Failed, 5 min" value=${count(failed)} tone=${failed ? "bad" : ""} note=${failed ? html`<${Link} to="/requests" query=${{ status: "failed" }}>look at them<//>` : "none"} curl="/v1/streams?status=failed&limit=100" />
    <${Tile} label="Chunks a second" value=${compact(Math.round(rate))} note="of what runs now" curl=${list} />
    <${Tile} label="Viewers" value=${count(viewers)} note=${now.viewers === null ? "of this API process" : "of all API processes"} curl=${list} />
    <${Tile} label="Spend today" value=${dollars(usage.data?.total.cost_usd)} note=${usage.data?.total.unknown_costs ? `${count(usage.data.total.unknown_costs)} of unknown cost` : "UTC day"} curl=${`/v1/usage?start=${today}&end=${today}`} />
  </div>`;
}

/** Chunks a second since it began to speak. */
function chunkRate(state, time_s) {
  if (!state.started_at || !state.chunks) return 0;
  return state.chunks / Math.max(1, time_s - state.started_at - (state.timings.first_chunk_ms ?? 0) / 1000);
}

function Running({ rows, ended, state, paused, enter }) {
  const tails = useRef(null);
  const held = useRef(rows);
  const [chosen, choose] = useState(null);
  useEffect(() => {
    tails.current = new Tails();
    setReady(tails.current);
    return () => tails.current.stop();
  }, []);
  const [ready, setReady] = useState(null);
  // Rows stay where they are while the pointer or the focus is among them; what is new comes when it has left.
  if (!paused) held.current = rows;
  const current = new Map(rows.map((row) => [row.id, row]));
  const list = held.current.map((row) => current.get(row.id) ?? { ...row, ...ended.find((one) => one.id === row.id), over: true });
  const ids = list.filter((row) => !row.over).slice(0, IN_VIEW).map((row) => row.id).join();
  useEffect(() => ready?.want(list.filter((row) => !row.over).slice(0, IN_VIEW)), [ids, ready]);
  const more = rows.filter((row) => !held.current.some((one) => one.id === row.id)).length;
  const row = list.find((one) => one.id === chosen);
  useKeys({
    c: () => copyText(asCurl(row ? `/v1/streams/${row.id}` : "/v1/streams?status=queued,in_progress", { live: !!row }), "curl copied"),
    x: () => (row && !row.over ? void cancelAsked(row) : false),
  });
  const columns = useMemo(() => columnsOf(ready), [ready]);
  return html`<${Card} flush title="Running now" small=${paused && more ? `${more} more, held back while you are here` : ""} curl="/v1/streams?status=queued,in_progress&limit=100"
      onPointerEnter=${() => enter({ pointer: true })} onPointerLeave=${() => enter({ pointer: false })}
      onFocusIn=${(event) => event.target.matches(":is(a, tr, .scroller):focus-visible") && enter({ focus: true })} onFocusOut=${(event) => event.currentTarget.contains(event.relatedTarget) || enter({ focus: false })}>
    ${list.length
      ? html`<${Table} label="Running now" columns=${columns} rows=${list} chosen=${chosen} onChoose=${choose} onOpen=${(one) => go(`/r/${one.id}`)} tall="min(46vh, 520px)" />`
      : html`<${Quiet} state=${state} />`}
  <//>`;
}

const columnsOf = (tails) => [
  { title: "Status", cell: (row) => html`<${Status} status=${row.over && isRunning(row) ? "completed" : row.status} quiet=${false} />` },
  { title: "Model", cell: (row) => html`<${Link} to=${`/r/${row.id}`} class="cut model">${row.served_by ?? row.model}<//>` },
  { title: "Last words", fill: true, cell: (row) => tails && html`<${LastWords} tails=${tails} row=${row} />` },
  { title: "Age", right: true, cell: (row) => html`<${Since} at=${row.created_at} />` },
  { title: "Chunks", right: true, narrow: false, cell: (row) => count(row.chunks) },
  { title: "Attempt", right: true, narrow: false, cell: (row) => (row.attempts > 1 ? html`<span class="warn">${row.attempts}</span>` : row.attempts || "–") },
  { title: "Viewers", right: true, narrow: false, cell: (row) => row.viewers },
  { title: html`<span class="unseen">Cancel</span>`, narrow: false, cell: (row) => !row.over && html`<${Button} kind="quiet tiny" icon="stop" title="Cancel (x)" aria-label=${`Cancel ${row.id}`} onClick=${() => cancelAsked(row)} />` },
];

function LastWords({ tails, row }) {
  const text = useStore(tails.texts).get(row.id);
  if (row.status === "queued") return html`<span class="soft">waits for a worker</span>`;
  return html`<bdi class="lastwords" aria-live="off">${text ? oneLine(lastLine(text)) : html`<span class="soft">…</span>`}</bdi>`;
}

const Quiet = ({ state }) => html`<div class="empty">
  <h2>${state === "connecting" ? "Looking …" : "Nothing runs just now"}</h2>
  <p class="soft">An answer shows up here the moment it is asked for, by whichever program. Try it with a model that needs no key:</p>
  <${Start} />
</div>`;

function Hour({ now }) {
  const minute = Math.floor(now.at_ms / 60_000);
  const plots = useMemo(() => {
    const rows = spans(now.ended, (one) => one.ended_at ?? one.created_at);
    const x = rows.map((one) => one.at);
    const of = (status) => rows.map((one) => one.rows.filter((row) => row.status === status).length);
    const ttft = (part) => rows.map((one) => quantile(one.rows.map(timeToFirst).filter((ms) => ms !== null), part));
    const tokens = rows.map((one) => one.rows.reduce((sum, row) => sum + (row.usage?.completion_tokens ?? 0), 0) / 60);
    return { x, done: of("completed"), cut: of("incomplete"), cancelled: of("cancelled"), failed: of("failed"), p50: ttft(0.5), p95: ttft(0.95), tokens };
  }, [minute, now.ended.length]);
  const note = now.partial ? "of the newest 1,000" : "the last hour, by the minute";
  const since = `/v1/streams?since=${Math.floor(now.at_ms / 1000) - 3600}&limit=100`;
  return html`<div class="grid3">
    <${Card} title="Requests" small=${note} curl=${since}><${Plot} label="Requests by outcome" stacked x=${plots.x} show=${(value) => compact(Math.round(value))}
      series=${[{ name: "completed", values: plots.done, shade: "--accent", bars: true }, { name: "incomplete", values: plots.cut, shade: "--warn", bars: true }, { name: "cancelled", values: plots.cancelled, shade: "--soft", bars: true }, { name: "failed", values: plots.failed, shade: "--bad", bars: true }]} /><//>
    <${Card} title="To the first chunk" small="p50 and p95" curl=${since}><${Plot} label="Time to the first chunk" x=${plots.x} show=${duration}
      series=${[{ name: "p50", values: plots.p50, shade: "--accent" }, { name: "p95", values: plots.p95, shade: "--warn" }]} /><//>
    <${Card} title="Tokens a second" small="of answers that ended" curl=${since}><${Plot} label="Tokens a second" x=${plots.x} show=${(value) => compact(Math.round(value * 10) / 10)}
      series=${[{ name: "tokens/s", values: plots.tokens, shade: "--run", bars: true }]} /><//>
  </div>`;
}

const timeToFirst = (state) => (state.timings.first_chunk_ms === null ? null : (state.timings.queued_ms ?? 0) + state.timings.first_chunk_ms);

function WorkerStrip() {
  const admin = useStore(session).operates;
  const { data, error, at_ms, reload } = useResource(admin ? "/v1/workers" : null, { every_ms: 5000 });
  if (!admin) return null;
  const workers = data?.data ?? [];
  return html`<${Card} title="Workers" small=${data ? `${workers.length} alive` : ""} curl="/v1/workers">
    <${Problem} error=${error?.status ? error : null} at_ms=${at_ms} reload=${reload} />
    ${data && !workers.length && html`<p>No worker is alive: what is asked now waits, and fails after a minute. Start one:</p><${Code} text="streamspool worker" />`}
    <div class="strip">${workers.map(
      (one) => html`<div class="worker" key=${one.id}><${Status} status=${one.status} /><span class="cut mono">${one.id}</span><span class="soft">${one.running} of ${one.places ?? "?"}</span><${Bar} value=${one.running} most=${one.places} label=${`Places of ${one.id}`} /></div>`,
    )}</div>
  <//>`;
}
