// Usage: what was used and what it cost, by time and by whom, and what of the budgets is gone.
import { html, useMemo, useState } from "../lib/dom.js";
import { asCurl, root, withQuery } from "../lib/api.js";
import { bytes, compact, count, dollars, duration } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { go, setQuery, usePlace } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { allTenants } from "../lib/scope.js";
import { useStore } from "../lib/store.js";
import { Bar, Card, copyText, Curl, Empty, Field, Problem, Switch, Tile, Typed } from "../ui/parts.js";
import { Start } from "../ui/actions.js";
import { Plot } from "../ui/plot.js";
import { Table } from "../ui/table.js";

const GROUPS = [["model", "Model"], ["provider", "Provider"], ["key", "Key"], ["tenant", "Tenant"]];
const FIGURES = [["cost_usd", "Cost"], ["total_tokens", "Tokens"], ["requests", "Requests"], ["failed_requests", "Failed"]];
const SHADES = ["--accent", "--run", "--warn", "--ok", "--bad", "--soft"];
const DRAWN = 5; // groups that have a colour of their own; the rest are one
const DAY_S = 86_400;
const day = (s) => new Date(s * 1000).toISOString().slice(0, 10);

export function Usage() {
  const { query } = usePlace();
  const every = useStore(allTenants) ? "*" : undefined;
  const bucket = query.bucket === "hour" ? "hour" : "day";
  const group = query.by ?? "model";
  const days = bucket === "hour" ? 2 : Number(query.days ?? 30);
  const now_s = Math.floor(Date.now() / 1000);
  const end = query.end ?? day(now_s);
  const start = query.start ?? day(Date.parse(end) / 1000 - (days - 1) * DAY_S);
  const path = withQuery("/v1/usage", { start, end, bucket, group_by: group, tenant: group === "tenant" ? undefined : every });
  const usage = useResource(path, { every_ms: 30_000 });
  useKeys({ c: () => copyText(asCurl(path), "curl copied") });
  const rows = usage.data?.data ?? [];
  const total = usage.data?.total;
  const figure = query.show ?? (total?.cost_usd ? "cost_usd" : "total_tokens");
  return html`
    <div class="head"><h1>Usage</h1>
      <${Switch} label="Width of a bar" value=${bucket} options=${[["hour", "Hours"], ["day", "Days"]]} onChange=${(name) => setQuery({ bucket: name })} />
      ${bucket === "day" && html`<${Switch} label="How far back" value=${String(days)} options=${[["7", "7 d"], ["30", "30 d"], ["90", "90 d"]]} onChange=${(name) => setQuery({ days: name })} />`}
      <a class="button" href=${root + withQuery("/v1/usage", { start, end, bucket, group_by: group, format: "csv" })} download="usage.csv">CSV</a><${Curl} path=${path} />
    </div>
    <div class="stack">
      <${Problem} error=${usage.error} at_ms=${usage.at_ms} reload=${usage.reload} />
      ${total && html`<div class="tiles">
        <${Tile} label="Cost" value=${dollars(total.cost_usd)} note=${total.unknown_costs ? `${count(total.unknown_costs)} of unknown cost` : "all known"} curl=${path} />
        <${Tile} label="Requests" value=${compact(total.requests)} note=${`${count(total.failed_requests)} failed`} curl=${path} />
        <${Tile} label="Prompt tokens" value=${compact(total.prompt_tokens)} note=${`${compact(total.cached_tokens)} cached`} curl=${path} />
        <${Tile} label="Answer tokens" value=${compact(total.completion_tokens)} note=${`${compact(total.reasoning_tokens)} of reasoning`} curl=${path} />
        <${Tile} label="First token, p50" value=${duration(total.first_token_ms?.p50)} note=${`p99 ${duration(total.first_token_ms?.p99)}`} curl=${path} />
        <${Tile} label="Whole, p50" value=${duration(total.duration_ms?.p50)} note=${`p99 ${duration(total.duration_ms?.p99)}`} curl=${path} />
      </div>`}
      <${Budgets} />
      <${Over} rows=${rows} nothing=${!!usage.data && !rows.length} group=${group} figure=${figure} bucket=${bucket} start=${start} end=${end} path=${path} />
    </div>`;
}

/** What is chosen here stays whether there is something to show or `nothing`: the next answer may be the other. */
function Over({ rows, nothing, group, figure, bucket, start, end, path }) {
  const shown = useMemo(() => series(rows, group, figure, bucket, start, end), [rows, group, figure, bucket, start, end]);
  const write = figure === "cost_usd" ? dollars : (value) => compact(Math.round(value));
  const zoom = (from, to) => bucket === "day" && setQuery({ start: day(from), end: day(to) });
  return html`
    <${Card} title="By time" flush=${nothing} curl=${path} actions=${html`
      <${Field} label=""><select class="input" aria-label="Figure" value=${figure} onChange=${(event) => setQuery({ show: event.target.value })}>${FIGURES.map(([name, text]) => html`<option value=${name}>${text}</option>`)}</select><//>
      <${By} group=${group} />`}>
      ${nothing
        ? html`<${Empty} title="Nothing was used in this time"><p class="soft">Each answer is counted once, a moment after its end.</p><${Start} /><//>`
        : html`<${Plot} label="Usage by time" stacked x=${shown.x} series=${shown.series} show=${write} height=${220} onZoom=${zoom} />`}<//>
    ${!nothing && html`<${Groups} rows=${rows} group=${group} bucket=${bucket} path=${path} />`}`;
}

function By({ group }) {
  const own = group.startsWith("metadata.");
  return html`<${Switch} label="Grouped by" value=${group} options=${GROUPS} onChange=${(name) => setQuery({ by: name })} />
    <${Typed} class="input by" aria-label="Grouped by a name of the metadata" placeholder="metadata name" value=${own ? group.slice(9) : ""} take=${(name) => setQuery({ by: name ? `metadata.${name}` : null })} />`;
}

const timeOf = (row) => Date.parse(row.hour ? `${row.hour}:00:00Z` : `${row.date}T00:00:00Z`) / 1000;

/** Every hour or day there is in the span, and the largest groups of them. */
function series(rows, group, figure, bucket, start, end) {
  const width = bucket === "hour" ? 3600 : DAY_S;
  const x = [];
  for (let at = Date.parse(start) / 1000; at < Date.parse(end) / 1000 + DAY_S && at < Date.now() / 1000; at += width) x.push(at);
  const sums = new Map();
  for (const row of rows) sums.set(row[group], (sums.get(row[group]) ?? 0) + (row[figure] ?? 0));
  const largest = [...sums].sort((one, other) => other[1] - one[1]).map(([name]) => name);
  const own = largest.slice(0, DRAWN);
  const places = new Map(x.map((at, place) => [at, place]));
  const found = [...own, ...(largest.length > DRAWN ? [Symbol.for("others")] : [])].map((name, at) => ({ name, label: typeof name === "symbol" ? "others" : (name ?? "none"), values: x.map(() => 0), shade: SHADES[at] }));
  for (const row of rows) {
    const at = own.indexOf(row[group]);
    const place = places.get(timeOf(row));
    if (place !== undefined) found[at < 0 ? found.length - 1 : at].values[place] += row[figure] ?? 0;
  }
  return { x, series: found.map((one) => ({ name: one.label, values: one.values, shade: one.shade, bars: true })) };
}

const SUMMED = ["requests", "failed_requests", "prompt_tokens", "completion_tokens", "total_tokens", "unknown_costs"];

function Groups({ rows, group, bucket, path }) {
  const [chosen, choose] = useState(null);
  const groups = useMemo(() => {
    const found = new Map();
    const times = [...new Set(rows.map(timeOf))].sort();
    const middle = times[Math.floor(times.length / 2)];
    for (const row of rows) {
      const name = row[group] ?? "";
      const sum = found.get(name) ?? { name, cost_usd: 0, before: 0, after: 0, ...Object.fromEntries(SUMMED.map((one) => [one, 0])) };
      for (const one of SUMMED) sum[one] += row[one] ?? 0;
      sum.cost_usd += row.cost_usd ?? 0;
      sum[timeOf(row) < middle ? "before" : "after"] += row.total_tokens;
      found.set(name, sum);
    }
    return [...found.values()].sort((one, other) => other.cost_usd - one.cost_usd || other.total_tokens - one.total_tokens);
  }, [rows, group]);
  const filter = { model: "served_by", provider: "provider", key: "key_id" }[group] ?? (group.startsWith("metadata.") ? `metadata[${group.slice(9)}]` : null);
  const open = (row) => filter && row.name && go("/requests", { [filter]: row.name });
  const grown = (row) => (row.before ? `${row.after >= row.before ? "+" : "−"}${Math.abs(Math.round((100 * (row.after - row.before)) / row.before))} %` : row.after ? "new" : "–");
  const columns = [
    { title: GROUPS.find(([name]) => name === group)?.[1] ?? group, fill: true, cell: (row) => row.name || html`<span class="soft">none</span>` },
    { title: "Cost", right: true, cell: (row) => html`${dollars(row.cost_usd)}${row.unknown_costs > 0 && html`<span class="soft" title=${`${count(row.unknown_costs)} of unknown cost`}> ?</span>`}` },
    { title: "Requests", right: true, cell: (row) => compact(row.requests) },
    { title: "Failed", right: true, narrow: false, cell: (row) => (row.failed_requests ? html`<span class="bad">${compact(row.failed_requests)}</span>` : "–") },
    { title: "Prompt", right: true, narrow: false, cell: (row) => compact(row.prompt_tokens) },
    { title: "Answer", right: true, narrow: false, cell: (row) => compact(row.completion_tokens) },
    { title: "Grown", right: true, narrow: false, cell: (row) => html`<span title="Tokens of the later half of the time, against the earlier">${grown(row)}</span>` },
  ];
  return html`<${Card} flush title="By group" small=${filter ? "a row leads to its requests" : ""} curl=${path}><${Table} label="Usage by group" columns=${columns} rows=${groups} keyOf=${(row) => row.name} chosen=${chosen} onChoose=${choose} onOpen=${filter ? open : undefined} tall="50vh" /><//>`;
}

/** What the caller may use and spend, and how much of it is gone. */
function Budgets() {
  const { data } = useResource("/v1/limits", { every_ms: 10_000 });
  if (!data) return null;
  const both = [[data.tenant, data], [data.key.id, data.key]];
  const money = both.flatMap(([whose, { budgets }]) => budgets.map((one) => ({ whose, name: `${one.period} ${one.now}${one.hard ? "" : ", only told"}`, now: one.spent_usd, most: one.limit_usd, show: (value) => (value ? dollars(value) : "$0") })));
  const limits = both.flatMap(([whose, { limits, used }]) => Object.entries(limits).map(([name, most]) => ({ whose, name: name.replaceAll("_", " "), most, now: used[name] ?? 0, show: name.endsWith("_bytes") ? bytes : count })));
  return html`${money.length > 0 && html`<${Card} title="Budgets" small="what is spent of them, by UTC" curl="/v1/limits"><${Gone} rows=${money} /><//>`}
    ${limits.length > 0 && html`<${Card} title="Limits" small="what is used of them now" curl="/v1/limits"><${Gone} rows=${limits} /><//>`}`;
}

const Gone = ({ rows }) => html`<div class="limits">${rows.map(
  (row) => html`<div key=${`${row.whose} ${row.name}`}><span>${row.name} <span class="soft">${row.whose}</span></span><${Bar} value=${row.now} most=${row.most} label=${`${row.name} ${row.whose}`} /><span class="number">${row.show(row.now)} of ${row.show(row.most)}</span></div>`,
)}</div>`;
