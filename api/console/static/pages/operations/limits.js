// Limits: what a tenant may use. Admins set them here, for one tenant or for all that have none of their own.
import { html, useState } from "../../lib/dom.js";
import { call, post, session, withQuery } from "../../lib/api.js";
import { count } from "../../lib/format.js";
import { useResource } from "../../lib/resource.js";
import { useStore } from "../../lib/store.js";
import { Action, Bar, Card, Empty, Field, Problem, say, Typed } from "../../ui/parts.js";

const NAMES = ["requests_per_min", "tokens_per_min", "running", "waiting", "webhooks", "open_batches", "body_bytes"];

export function Limits() {
  const who = useStore(session);
  const admin = who.role === "admin" && who.keyed;
  const [tenant, setTenant] = useState("");
  const { data, error, at_ms, reload } = useResource(withQuery("/v1/limits", { tenant: admin ? tenant : "" }), { every_ms: 5000 });
  const rows = data ? [...Object.entries(data.limits).map(([name, most]) => [data.tenant, name, most, data.used[name]]), ...Object.entries(data.key.limits).map(([name, most]) => [data.key.id, name, most, data.key.used[name]])] : [];
  return html`<div class="stack">
    <${Problem} error=${error} at_ms=${at_ms} reload=${reload} />
    <${Card} title="In force" small=${data?.tenant} curl=${withQuery("/v1/limits", { tenant: admin ? tenant : "" })} actions=${admin && html`<${Typed} class="input by" aria-label="Tenant" placeholder="tenant" value=${tenant} take=${(name) => setTenant(name.trim())} />`}>
      ${rows.length
        ? html`<div class="limits">${rows.map(([whose, name, most, now = 0]) => html`<div key=${whose + name}><span>${name.replaceAll("_", " ")} <span class="soft">${whose}</span></span><${Bar} value=${now} most=${most} label=${name} /><span class="number">${count(now)} of ${count(most)}</span></div>`)}</div>`
        : data && html`<${Empty} title="No limit" code="export STREAMSPOOL_LIMITS='requests_per_min=600 running=50'"><p class="soft">This tenant may use as much as it asks for. Limits for all are a setting:</p><//>`}<//>
    ${admin && html`<${Change} tenant=${tenant || who.tenant} done=${reload} />`}
  </div>`;
}

function Change({ tenant, done }) {
  const [numbers, set] = useState({});
  const send = async () => {
    const body = Object.fromEntries(Object.entries(numbers).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
    await post(`/v1/limits/${encodeURIComponent(tenant)}`, body);
    say("Set, on every API process within a second");
    done();
  };
  const reset = async () => {
    await call("DELETE", `/v1/limits/${encodeURIComponent(tenant)}`);
    say("The settings hold again");
    done();
  };
  return html`<${Card} title="Set" small=${tenant}><div class="fields">${NAMES.map((name) => html`<${Field} label=${name} key=${name}><input class="input" type="number" min="0" value=${numbers[name] ?? ""} onInput=${(event) => set({ ...numbers, [name]: event.target.value })} /><//>`)}</div>
    <div class="row actions"><${Action} kind="main" run=${send}>Set<//><${Action} run=${reset}>Take back<//></div><//>`;
}
