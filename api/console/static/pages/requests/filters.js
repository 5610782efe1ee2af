// The filters of a list: in the address, as chips, as a sidebar with counts, and as a span of time drawn with the pointer.
import { html, useMemo, useRef, useState } from "../../lib/dom.js";
import { get, withQuery } from "../../lib/api.js";
import { absolute, count } from "../../lib/format.js";
import { go, setQuery, usePlace } from "../../lib/router.js";
import { useResource } from "../../lib/resource.js";
import { Action, Button, Field, Switch, Typed } from "../../ui/parts.js";
import { Plot } from "../../ui/plot.js";

const NAMES = {
  status: "status", model: "model", served_by: "served by", provider: "provider", source: "source", key_id: "key", error: "error",
  session_id: "session", batch_id: "batch", q: "has", since: "since", until: "until", order: "order",
  min_duration_ms: "longer than", max_duration_ms: "shorter than", min_ttft_ms: "first chunk after", max_ttft_ms: "first chunk within",
  min_tokens: "tokens from", max_tokens: "tokens to", min_cost_usd: "cost from", max_cost_usd: "cost to",
};
const STATUSES = ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"];
const FACETS = [["status", "Status"], ["model", "Model"], ["provider", "Provider"], ["source", "Source"], ["error", "Error"], ["key_id", "Key"], ["session_id", "Session"], ["batch_id", "Batch"]];
const SEVERAL = ["status", "provider", "source", "error", "key_id"]; // the server takes several of these with commas

export const filtersOf = (query) => Object.fromEntries(Object.entries(query).filter(([name, value]) => value && (NAMES[name] || /^metadata\[.+\]$/.test(name))));
export const searchOf = (filters) => filters;

export function Chips({ filters }) {
  const names = Object.keys(filters);
  if (!names.length) return null;
  const written = (name) => (name === "since" || name === "until" ? (/^\d+$/.test(filters[name]) ? absolute(Number(filters[name])) : filters[name]) : filters[name]);
  return html`<div class="row chips" aria-label="Filters in force">${names.map(
    (name) => html`<span class="chip" key=${name}><span class="soft">${NAMES[name] ?? name.slice(9, -1)}</span><b class="cut">${written(name)}</b><button aria-label=${`Take out ${NAMES[name] ?? name}`} onClick=${() => setQuery({ [name]: null })}>×</button></span>`,
  )}<${Button} kind="quiet tiny" onClick=${() => go("/requests")}>Clear<//></div>`;
}

function toggled(filters, name, value) {
  if (!SEVERAL.includes(name)) return filters[name] === value ? null : value;
  const chosen = (filters[name] ?? "").split(",").filter(Boolean);
  return (chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value]).join(",") || null;
}

/** Counts by the server where it has them; else of the rows that are loaded. */
export function useFacets(filters, tenant) {
  return useResource(withQuery("/v1/streams/facets", { ...searchOf({ ...filters, order: undefined }), tenant }), { every_ms: 15_000 });
}

const COUNTED = { status: "status", model: "model", provider: "provider", source: "source", error: "error_code", key_id: "key_id" };

/** Counts of all that has ended, which the history has, once they are asked for: {counts, ask}. */
function useCounts(filters, tenant) {
  const [held, hold] = useState({ of: "", counts: {} });
  const of = JSON.stringify({ ...filters, tenant });
  const ask = async () => {
    const counts = {};
    for (const [name, by] of Object.entries(COUNTED)) {
      const { data } = await get(withQuery("/v1/streams/counts", { ...searchOf(filters), order: undefined, [name]: undefined, by, tenant }));
      counts[name] = data.filter((one) => one.value !== null).map((one) => [one.value, one.count]);
    }
    hold({ of, counts });
  };
  return { counts: held.of === of ? held.counts : {}, ask };
}

function countsOf(told, rows, name, counts) {
  if (counts[name]) return counts[name];
  const given = told?.facets?.[name]?.values;
  if (given) return given.filter((one) => one.value !== null).map((one) => [one.value, one.count]);
  const found = new Map();
  for (const row of rows) {
    const value = { status: row.status, model: row.model, provider: (row.served_by ?? row.model).split("/")[0], error: row.error?.code, session_id: row.session_id, batch_id: row.batch_id, source: null, key_id: null }[name];
    if (value) found.set(value, (found.get(value) ?? 0) + 1);
  }
  return [...found].sort((one, other) => other[1] - one[1]);
}

export function Facets({ filters, rows, tenant }) {
  const facets = useFacets(filters, tenant);
  const { counts, ask } = useCounts(filters, tenant);
  return html`<details class="filters" open=${!matchMedia("(max-width: 900px)").matches}><summary>Filters</summary><div class="facets">
    <div class="quick">
      <${Button} kind="quiet" aria-pressed=${filters.status === "failed"} onClick=${() => setQuery((now) => ({ status: now.status === "failed" ? null : "failed" }))}>Failed<//>
      <${Button} kind="quiet" aria-pressed=${filters.order === "slowest"} onClick=${() => setQuery((now) => ({ order: now.order === "slowest" ? null : "slowest" }))}>Slowest<//>
      <${Button} kind="quiet" aria-pressed=${filters.order === "most_expensive"} onClick=${() => setQuery((now) => ({ order: now.order === "most_expensive" ? null : "most_expensive" }))}>Most expensive<//>
    </div>
    ${FACETS.map(([name, title]) => {
      let found = countsOf(facets.data, rows, name, counts);
      if (name === "status") found = STATUSES.map((status) => [status, found.find(([value]) => value === status)?.[1] ?? 0]).filter(([status, number]) => number || filters.status?.includes(status));
      if (!found.length) return null;
      return html`<${Fold} title=${title} open=${["status", "model", "error"].includes(name) || !!filters[name]} key=${name}><ul>${found.slice(0, 12).map(
        ([value, number]) => html`<li key=${value}><button aria-pressed=${(filters[name] ?? "").split(",").includes(value)} onClick=${() => setQuery((now) => ({ [name]: toggled(now, name, value) }))}><span class="cut">${value}</span><span class="soft">${count(number)}</span></button></li>`,
      )}</ul><//>`;
    })}
    ${facets.data?.partial && html`<p class="soft">${counts.status ? "Counts are of all that has ended." : html`Counts are of the newest ${count(facets.data.looked_at)}. <${Action} kind="tiny" run=${ask}>Count all<//>`}</p>`}
    <${Fold} title="Ranges" open=${Object.keys(filters).some((name) => /^m(in|ax)_/.test(name))}><div class="ranges">
      ${[["duration_ms", "Total, ms"], ["ttft_ms", "First chunk, ms"], ["tokens", "Tokens"], ["cost_usd", "Cost, $"]].map(
        ([name, title]) => html`<${Field} label=${title}><span class="row">${["min", "max"].map((end) => html`<${Typed} key=${end} type="number" min="0" step="any" placeholder=${end} aria-label=${`${title}, ${end}`} value=${filters[`${end}_${name}`] ?? ""} take=${(number) => setQuery({ [`${end}_${name}`]: number || null })} />`)}</span><//>`,
      )}</div><//>
  </div></details>`;
}

/** Opens with its first filter. It is closed by the reader alone: not under his hand, as he takes the last filter out. */
function Fold({ title, open, children }) {
  const opened = useRef(false);
  opened.current ||= open;
  return html`<details open=${opened.current}><summary><h3>${title}</h3></summary>${children}</details>`;
}

const SPANS = [["3600", "1 h"], ["86400", "24 h"], ["604800", "7 d"], ["", "all"]];

/** How many there were, by time. A span that is drawn becomes the filter. */
export function Histogram({ filters, rows, tenant }) {
  const { query } = usePlace();
  const facets = useFacets(filters, tenant);
  const told = facets.data?.histogram;
  const shown = useMemo(() => (told?.buckets.length ? fromServer(told) : fromRows(rows)), [told, rows]);
  const zoom = (since, until) => setQuery({ since, until });
  const span = filters.until ? "" : (SPANS.find(([s]) => s && Math.abs(Date.now() / 1000 - Number(filters.since) - Number(s)) < 120)?.[0] ?? (filters.since ? "" : ""));
  return html`<section class="card histogram"><div class="body">
    <div class="row"><${Switch} label="Span of time" value=${filters.since ? span : ""} options=${SPANS} onChange=${(s) => setQuery({ since: s ? Math.floor(Date.now() / 1000) - Number(s) : null, until: null })} />
      <span class="soft">${facets.data ? `${count(facets.data.matched)} requests${facets.data.partial ? `, of the newest ${count(facets.data.looked_at)}` : ""}` : `${count(rows.length)} loaded`}</span><span class="grow"></span><span class="soft narrow-hidden">${query.since ? "" : "Drag to zoom"}</span></div>
    ${shown.x.length > 0 && html`<${Plot} label="Requests by time" stacked x=${shown.x} height=${92} show=${(value) => count(Math.round(value))} onZoom=${zoom} series=${shown.series} />`}
  </div></section>`;
}

const SHADES = { completed: "--accent", queued: "--soft", in_progress: "--run", incomplete: "--warn", cancelled: "--soft", failed: "--bad" };
const drawn = (x, values) => ({ x, series: STATUSES.filter((status) => values(status).some(Boolean)).map((status) => ({ name: status, values: values(status), shade: SHADES[status], bars: true })) });

/** The server leaves out spans without any. */
function fromServer({ bucket_s, buckets }) {
  const byTime = new Map(buckets.map((one) => [one.at, one.statuses]));
  const [first, last] = [buckets[0].at, buckets.at(-1).at];
  const x = Array.from({ length: Math.round((last - first) / bucket_s) + 1 }, (_, at) => first + at * bucket_s);
  return drawn(x, (status) => x.map((at) => byTime.get(at)?.[status] ?? 0));
}

function fromRows(rows) {
  if (!rows.length) return { x: [], series: [] };
  const times = rows.map((row) => row.created_at);
  const first = Math.min(...times);
  const width = Math.max(1, Math.ceil((Math.max(...times) - first + 1) / 60));
  const x = Array.from({ length: 60 }, (_, at) => first + at * width);
  return drawn(x, (status) => x.map((at) => rows.filter((row) => row.status === status && row.created_at >= at && row.created_at < at + width).length));
}
