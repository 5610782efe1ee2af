// Providers: what can be asked for, of whom, and how it went of late.
import { html, useState } from "../../lib/dom.js";
import { post } from "../../lib/api.js";
import { absolute, compact, count, duration } from "../../lib/format.js";
import { goLater, Link } from "../../lib/router.js";
import { useResource } from "../../lib/resource.js";
import { Action, Ago, Card, Empty, Problem, say } from "../../ui/parts.js";
import { Table } from "../../ui/table.js";

export function Providers() {
  const health = useResource("/v1/providers", { every_ms: 5000 });
  const models = useResource("/v1/models");
  const usage = useResource("/v1/usage?group_by=provider&bucket=hour", { every_ms: 30_000 });
  const [chosen, choose] = useState(null);
  const told = health.data?.data ?? [];
  const listed = models.data?.data ?? [];
  const names = new Map();
  for (const one of told) names.set(one.name, { id: one.name, health: one, models: 0 });
  for (const model of listed) {
    const name = model.id.includes("/") ? model.id.split("/")[0] : "(names of your own)";
    const row = names.get(name) ?? { id: name, models: 0 };
    names.set(name, { ...row, models: row.models + 1 });
  }
  const figures = new Map();
  for (const row of usage.data?.data ?? []) {
    const sum = figures.get(row.provider) ?? { requests: 0, failed: 0, p90: null };
    figures.set(row.provider, { requests: sum.requests + row.requests, failed: sum.failed + row.failed_requests, p90: row.duration_ms?.p90 ?? sum.p90 });
  }
  const rows = [...names.values()].map((row) => ({ ...row, used: figures.get(row.id) }));
  const fields = told.length ? HEALTH : [];
  const test = async (row) => {
    const then = goLater();
    if (row.health && row.id !== "fake") {
      const result = await post(`/v1/providers/${encodeURIComponent(row.id)}/test`);
      return say(result.ok ? `${row.id} answers, with ${count(result.models)} models` : `${row.id}: ${result.error.message}`);
    }
    const model = listed.find((one) => one.id.startsWith(`${row.id}/`))?.id ?? `${row.id}/`;
    const state = await post("/v1/chat/completions", { model, messages: [{ role: "user", content: "Say hello." }], max_tokens: 16, background: true });
    return then(`/r/${state.id}`);
  };
  return html`<div class="stack">
    <${Problem} error=${health.error?.status === 404 ? null : health.error} at_ms=${health.at_ms} reload=${health.reload} />
    <${Problem} error=${models.error} reload=${models.reload} />
    <${Card} flush title="Providers" small="requests of two days" curl=${told.length ? "/v1/providers" : "/v1/models"}>
      ${rows.length ? html`<${Table} label="Providers" rows=${rows} chosen=${chosen} onChoose=${choose} columns=${[
        { title: "Provider", fill: true, cell: (row) => html`<${Link} to="/requests" query=${{ provider: row.id }}>${row.id}<//>` },
        ...fields,
        { title: "Models", right: true, cell: (row) => count(row.models) },
        { title: "Requests", right: true, cell: (row) => compact(row.used?.requests) },
        { title: "Failed", right: true, cell: (row) => (row.used?.failed ? html`<span class="bad">${compact(row.used.failed)}</span>` : "–") },
        { title: "p90", right: true, narrow: false, cell: (row) => duration(row.used?.p90) },
        { title: html`<span class="unseen">Test</span>`, narrow: false, cell: (row) => row.models > 0 && !row.id.startsWith("(") && html`<${Action} kind="tiny" title="Asks its first model for a few words" run=${() => test(row)}>Test<//>` },
      ]} />` : html`<${Empty} title="No provider" code=${"export OPENAI_API_KEY=…\nstreamspool up"}><p class="soft">A provider is on when its key, or its address, is in the environment of the workers:</p><//>`}
    <//>
    <${Card} flush title="Models" small=${`${count(listed.length)} listed; others of a provider work as well`} curl="/v1/models"><${Table} label="Models" rows=${listed} columns=${[
      { title: "Model", fill: true, cell: (row) => html`<${Link} to="/playground" hash=${encodeURIComponent(JSON.stringify({ models: [row.id] }))} class="mono">${row.id}<//>` },
      { title: "Name", narrow: false, cell: (row) => row.name ?? "–" },
      { title: "Context", right: true, cell: (row) => compact(row.context_length) },
      { title: "By", narrow: false, cell: (row) => row.owned_by },
    ]} tall="44vh" /><//>
  </div>`;
}

const HEALTH = [
  { title: "Key", narrow: false, cell: ({ health }) => (health?.has_key === true ? "set" : health?.has_key === false ? html`<span class="warn">none</span>` : "–") },
  { title: "Last answer", right: true, cell: ({ health }) => html`<${Ago} at=${health?.last_success_at} />` },
  { title: "Last error", narrow: false, cell: ({ health }) => (health?.last_error ? html`<span class="bad">${[health.last_error.status, health.last_error.code].filter(Boolean).join(" ")}</span> <${Ago} at=${health.last_error.at} />` : "–") },
  { title: "Errors", right: true, cell: ({ health }) => (health?.error_rate ? html`<span class="bad">${(100 * health.error_rate).toFixed(1)} %</span>` : health?.asked ? "0 %" : "–") },
  { title: "First chunk, p95", right: true, narrow: false, cell: ({ health }) => duration(health?.first_chunk_ms?.p95) },
  { title: "Left alone until", right: true, wide: true, cell: ({ health }) => absolute(health?.retry_at) },
];
