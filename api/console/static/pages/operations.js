// Operations: who works, what waits, how the providers do, who may ask, and who changed what. Most of it is for admins.
import { html, useState } from "../lib/dom.js";
import { asCurl, post, root as prefix, session, withQuery } from "../lib/api.js";
import { bytes, count, duration } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { setQuery, usePlace } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { allTenants } from "../lib/scope.js";
import { useStore } from "../lib/store.js";
import { Status } from "../ui/icons.js";
import { Action, Bar, Button, Card, copyText, Empty, Facts, Problem, Since, Tabs } from "../ui/parts.js";
import { Table } from "../ui/table.js";
import { Audit, Keys } from "./operations/keys.js";
import { Limits } from "./operations/limits.js";
import { Providers } from "./operations/providers.js";

const TABS = [["work", "Workers and queue"], ["providers", "Providers"], ["keys", "Keys"], ["limits", "Limits"], ["server", "Server"], ["audit", "Audit"]];
const PATHS = { work: "/v1/workers", providers: "/v1/models", keys: "/v1/keys", limits: "/v1/limits", server: "/readyz", audit: "/v1/audit" };

export function Operations() {
  const { query } = usePlace();
  const tab = PATHS[query.tab] ? query.tab : "work";
  const step = (by) => setQuery({ tab: TABS[(TABS.findIndex(([name]) => name === tab) + by + TABS.length) % TABS.length][0] }, { replace: true });
  useKeys({ "[": () => step(-1), "]": () => step(1), c: () => copyText(asCurl(PATHS[tab]), "curl copied") });
  const Part = { work: Work, providers: Providers, keys: Keys, limits: Limits, server: Server, audit: Audit }[tab];
  return html`<div class="head"><h1>Operations</h1></div>
    <div class="stack"><${Tabs} label="Parts of operations" value=${tab} options=${TABS} onChange=${(name) => setQuery({ tab: name }, { replace: true })} />
    <div role="tabpanel" aria-labelledby=${`tab-${tab}`}><${Part} key=${tab} /></div></div>`;
}

function Work() {
  const every = useStore(allTenants) ? "*" : undefined;
  const admin = useStore(session).operates;
  const workers = useResource(admin ? "/v1/workers" : null, { every_ms: 3000 });
  const queue = useResource(withQuery("/v1/queue", { tenant: every }), { every_ms: 3000 });
  const columns = [
    { title: "Status", cell: (row) => html`<${Status} status=${row.status} />` },
    { title: "Worker", fill: true, cell: (row) => html`<span class="mono">${row.id}</span>` },
    { title: "Places", cell: (row) => html`<${Bar} value=${row.running} most=${row.places} label=${`Places of ${row.id}`} />` },
    { title: "Running", right: true, cell: (row) => `${count(row.running)} of ${row.places ?? "?"}` },
    { title: "By lane", narrow: false, cell: (row) => Object.entries(row.jobs ?? {}).filter(([, number]) => number).map(([lane, number]) => `${lane} ${number}`).join(" · ") || "–" },
    { title: "Host", narrow: false, cell: (row) => `${row.host}:${row.pid}` },
    { title: "Version", narrow: false, cell: (row) => row.version },
    { title: "Up", right: true, cell: (row) => html`<${Since} at=${row.started_at} />` },
    { title: html`<span class="unseen">Drain</span>`, narrow: false, cell: (row) => row.status !== "draining" && html`<${Action} kind="tiny" title=${row.status === "resting" ? "It begins what waits again, within 5 s" : "It begins nothing more, within 5 s; what runs there goes on"} run=${() => drain(row).then(workers.reload)}>${row.status === "resting" ? "Resume" : "Drain"}<//>` },
  ];
  const lanes = queue.data?.data ?? [];
  const waiting = lanes.flatMap((lane) => lane.tenants.map((one) => ({ ...one, lane: lane.lane, key: `${lane.lane} ${one.tenant}` })));
  return html`<div class="stack">
    <${Problem} error=${workers.error} at_ms=${workers.at_ms} reload=${workers.reload} />
    ${admin && html`<${Card} flush title="Workers" small=${workers.data ? `${workers.data.data.length} alive` : ""} curl="/v1/workers">${workers.data?.data.length === 0
      ? html`<${Empty} title="No worker is alive" code="streamspool worker"><p class="soft">What is asked now waits, and fails with <code>no_worker</code> after a minute. Start one:</p><//>`
      : html`<${Table} label="Workers" columns=${columns} rows=${workers.data?.data ?? []} />`}<//>`}
    <${Card} title="Queue" small="by lane" curl="/v1/queue"><div class="tiles">${lanes.map((lane) => html`<div class="tile" key=${lane.lane}><div class="label">${lane.lane}</div><div class=${`value ${lane.waiting ? "warn" : ""}`}>${count(lane.waiting)} <small>wait</small></div><div class="note">${count(lane.running)} run${lane.oldest_at ? html`, oldest <${Since} at=${lane.oldest_at} />` : ""}</div></div>`)}</div><//>
    ${waiting.length > 0 && html`<${Card} flush title="Who waits" curl="/v1/queue"><${Table} label="Queue by tenant" rows=${waiting} keyOf=${(row) => row.key} columns=${[
      { title: "Tenant", fill: true, cell: (row) => row.tenant }, { title: "Lane", cell: (row) => row.lane }, { title: "Waiting", right: true, cell: (row) => count(row.waiting) }, { title: "Oldest", right: true, cell: (row) => html`<${Since} at=${row.oldest_at} />` },
    ]} /><//>`}
  </div>`;
}

const drain = (worker) => post(`/v1/workers/${encodeURIComponent(worker.id)}/${worker.status === "resting" ? "resume" : "drain"}`);

const MEANING = { accept: "A new request would be stored and run", serve: "What is there can be read, cancelled and deleted", redis: "Redis answers and takes writes", workers: "Workers that have reported" };

function Server() {
  const ready = useResource("/readyz", { every_ms: 3000 });
  const root = useResource("/", { every_ms: 10_000 });
  const history = useResource("/v1/history", { every_ms: 10_000 });
  const checks = root.data?.checks ?? ready.data?.checks ?? {};
  const who = useStore(session);
  const kept = history.data;
  return html`<div class="stack">
    <${Problem} error=${root.error} at_ms=${root.at_ms} reload=${root.reload} />
    <div class="grid2">
      <${Card} title="Whether it can do its work" curl="/readyz"><${Facts} rows=${Object.entries(checks).map(([name, told]) => [name, html`<${Status} status=${told === "ok" || /alive/.test(told) ? "ok" : "failed"} quiet /> ${told} <span class="soft">· ${MEANING[name]}</span>`])} /><//>
      <${Card} title="This server" curl="/"><${Facts} rows=${[["Version", root.data?.version], ["You are", `${who.tenant || "–"}, ${who.role ?? "–"}`], ["Key", who.key_id ?? "none: this machine only"], ["All routes", html`<a href=${`${prefix}/docs`}>/docs</a>`], ["Metrics", html`<code>/metrics</code>, for Prometheus`]]} /><//>
      ${who.operates && html`<${Redis} />`}
      <${Card} title="History" small="what outlives the text of answers" curl="/v1/history">${kept?.status === "off"
        ? html`<p class="soft">There is none: <code>STREAMSPOOL_HISTORY_URL</code> names a database.</p>`
        : kept && html`<${Facts} rows=${[["Database", html`<${Status} status=${kept.status === "ok" ? "ok" : "failed"} quiet /> ${kept.status}`], ["Kept for", duration(kept.kept_s * 1000)], ["Rows so far", count(kept.added)], ["On their way", count(kept.waiting)], ["Lost", html`<span class=${kept.lost ? "bad" : ""}>${count(kept.lost)}</span>`]]} />`}<//>
    </div>
    ${who.operates && html`<${Settings} />`}
  </div>`;
}

function Redis() {
  const { data, error, at_ms, reload } = useResource("/v1/redis", { every_ms: 5000 });
  return html`<${Card} title="Redis" small=${data ? [data.version, data.role].filter(Boolean).join(", ") : ""} curl="/v1/redis">
    <${Problem} error=${error} at_ms=${at_ms} reload=${reload} />
    ${data && html`<${Facts} rows=${[
      ["Memory", html`${bytes(data.used_bytes)} of ${data.limit_bytes ? bytes(data.limit_bytes) : "no limit"} <span class="soft">· ${bytes(data.peak_bytes)} at most</span>${data.limit_bytes && html`<${Bar} value=${data.used_bytes} most=${data.limit_bytes} label="Memory of Redis" />`}`],
      ["Evicted", html`<span class=${data.evicted_keys ? "bad" : ""}>${count(data.evicted_keys)} keys</span> <span class="soft">· ${data.eviction_policy ?? "–"}${data.eviction_policy && data.eviction_policy !== "noeviction" ? " may drop streams" : ""}</span>`],
      ["Answers in", `${data.answered_ms} ms`],
      ["Keys", count(data.keys)],
      ["Clients", count(data.clients)],
      ["Commands a second", count(data.commands_per_s)],
      ["On disk", data.appendonly === null ? null : data.appendonly ? html`each change${data.last_write_ok ? "" : html`, <span class="bad">the last write failed</span>`}` : "snapshots at most: what is newer goes with a crash"],
      ["Up", duration(data.up_s === null ? null : data.up_s * 1000)],
    ]} />`}<//>`;
}

function Settings() {
  const { data, error, at_ms, reload } = useResource("/v1/settings");
  const [all, showAll] = useState(false);
  const rows = (data?.data ?? []).filter((one) => all || one.source !== "default");
  const columns = [
    { title: "Setting", cell: (row) => html`<span class="mono">${row.name}</span>` },
    { title: "Value", fill: true, cell: (row) => html`<span class="mono" title=${row.value}>${row.value || "–"}</span>` },
    { title: "From", narrow: false, cell: (row) => row.source },
  ];
  return html`<${Card} flush title="Settings" small=${data ? `of the API process that answered; ${data.data.length - data.data.filter((one) => one.source === "default").length} are set` : ""} curl="/v1/settings"
      actions=${html`<${Button} kind="quiet tiny" aria-pressed=${all} onClick=${() => showAll(!all)}>Defaults, too<//>`}>
    <${Problem} error=${error} at_ms=${at_ms} reload=${reload} />
    <${Table} label="Settings" columns=${columns} rows=${rows} keyOf=${(row) => row.name} keys=${false} /><//>`;
}
