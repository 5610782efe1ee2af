// The request as it was sent, and what else decided about it.
import { html } from "../../lib/dom.js";
import { asCurl } from "../../lib/api.js";
import { absolute, count } from "../../lib/format.js";
import { Link } from "../../lib/router.js";
import { Card, Code, Facts, Problem } from "../../ui/parts.js";

export function Sent({ state, request }) {
  const body = request.data;
  const names = body ? Object.keys(body).filter((name) => !["messages", "tools"].includes(name)) : [];
  return html`<div class="grid2">
    <${Card} title="As it was sent" curl=${`/v1/streams/${state.id}/request`}>
      <${Problem} error=${request.error} reload=${request.reload} />
      ${body && html`<${Code} text=${JSON.stringify(body, null, 2)} />`}
      ${body && html`<h3>Ask it again</h3><${Code} text=${asCurl("/v1/chat/completions", { method: "POST", body })} />`}
    <//>
    <div class="stack">
      <${Card} title="What it is">
        <${Facts} rows=${[
          ["Id", html`<span class="mono">${state.id}</span>`],
          ["Created", absolute(state.created_at)],
          ["Started", absolute(state.started_at)],
          ["Ended", absolute(state.ended_at)],
          ["Served by", state.served_by],
          ["Session", state.session_id && html`<${Link} to=${`/sessions/${encodeURIComponent(state.session_id)}`}>${state.session_id}<//>`],
          ["Batch", state.batch_id && html`<${Link} to=${`/batches/${state.batch_id}`}>${state.batch_id}<//>`],
          ["Retry of", state.retried_from && html`<${Link} to=${`/r/${state.retried_from}`} class="mono">${state.retried_from}<//>`],
          ["Background", state.background ? "yes" : "no"],
          ["Stored", state.stored ? "yes" : "no"],
          ["Sealed by", state.sealed_by],
          ["Webhook", state.webhook && html`<code>${JSON.stringify(state.webhook)}</code>`],
          ["Messages", body && count(body.messages?.length)],
          ["Tools", body?.tools && body.tools.map((tool) => tool.function?.name ?? tool.type).join(", ")],
        ].filter(([, value]) => value !== null && value !== undefined)} />
      <//>
      ${names.length > 0 && html`<${Card} title="Parameters"><${Facts} rows=${names.map((name) => [name, html`<code>${JSON.stringify(body[name])}</code>`])} /><//>`}
      ${Object.keys(state.metadata).length > 0 && html`<${Card} title="Metadata"><${Facts} rows=${Object.entries(state.metadata).map(([key, value]) => [key, html`<${Link} to="/requests" query=${{ [`metadata[${key}]`]: value }}>${value}<//>`])} /><//>`}
    </div>
  </div>`;
}
