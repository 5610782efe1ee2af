// Keys: who may ask, made, changed, rotated and revoked; and the trail of all such changes.
import { html, useState } from "../../lib/dom.js";
import { asCurl, post, remove } from "../../lib/api.js";
import { absolute, count } from "../../lib/format.js";
import { usePages } from "../../lib/pages.js";
import { Link } from "../../lib/router.js";
import { Status } from "../../ui/icons.js";
import { Action, Ago, ask, Button, Card, Code, Dialog, Empty, Field, Problem } from "../../ui/parts.js";
import { Table } from "../../ui/table.js";

const OVERLAP_S = 3600;

export function Keys() {
  const list = usePages("/v1/keys?limit=100");
  const [chosen, choose] = useState(null);
  const [making, make] = useState(false);
  const [secret, tell] = useState(null);
  if (list.error?.status === 403) return html`<section class="card"><${Empty} title="Keys are an admin's" code="export STREAMSPOOL_ADMIN_KEYS=ops:$(head -c 24 /dev/urandom | base64)"><p class="soft">A key whose role is <code>admin</code> makes others. The first one stands in the environment of the API; without any, this server answers this machine only:</p><//></section>`;
  const rotate = async (row) => {
    if (!(await ask("Rotate this key?", "It gets a new secret, shown once. The one before holds for an hour more.", "Rotate it"))) return;
    tell((await post(`/v1/keys/${row.id}/rotate`, { overlap_s: OVERLAP_S })).key);
    list.reload();
  };
  const revoke = async (row) => {
    if (!(await ask("Revoke this key?", `${row.name || row.id} of ${row.tenant} opens nothing any more, at once.`, "Revoke it"))) return;
    await remove(`/v1/keys/${row.id}`);
    list.reload();
  };
  const columns = [
    { title: "Status", cell: (row) => html`<${Status} status=${row.status} />` },
    { title: "Name", fill: true, cell: (row) => html`<${Link} to="/requests" query=${{ key_id: row.id }}>${row.name || row.id}<//> <span class="soft">${row.hint ? `…${row.hint}` : row.source}</span>` },
    { title: "Tenant", cell: (row) => row.tenant },
    { title: "Role", narrow: false, cell: (row) => row.role },
    { title: "Limits", narrow: false, cell: (row) => [...Object.entries(row.limits), ...Object.entries(row.budgets)].map(([name, number]) => `${name} ${number}`).join(" · ") || "–" },
    { title: "Models", narrow: false, cell: (row) => row.models?.join(", ") ?? "all" },
    { title: "Used", right: true, cell: (row) => html`<${Ago} at=${row.last_used_at} />` },
    { title: "Expires", right: true, narrow: false, cell: (row) => absolute(row.expires_at) },
    { title: html`<span class="unseen">Change</span>`, narrow: false, cell: (row) => row.source === "api" && row.status === "active" && html`<${Action} kind="quiet tiny" icon="again" title="Rotate" aria-label=${`Rotate ${row.id}`} run=${() => rotate(row)} /><${Action} kind="quiet tiny danger" icon="bin" title="Revoke" aria-label=${`Revoke ${row.id}`} run=${() => revoke(row)} />` },
  ];
  return html`<div class="stack">
    <${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} />
    <${Card} flush title="Keys" small=${count(list.rows.length)} curl="/v1/keys" actions=${html`<${Button} icon="plus" onClick=${() => make(true)}>New key<//>`}>
      <${Table} label="Keys" columns=${columns} rows=${list.rows} chosen=${chosen} onChoose=${choose} tall="60vh" foot=${list.more && html`<div class="more"><${Button} onClick=${list.next}>More<//></div>`} /><//>
    ${making && html`<${NewKey} onClose=${() => make(false)} onMade=${(key) => (make(false), tell(key), list.reload())} />`}
    ${secret && html`<${Dialog} title="The new secret, shown this once" onClose=${() => tell(null)}><${Code} text=${secret} /><p class="soft">Only its digest is kept: nobody can be told it again.</p><//>`}
  </div>`;
}

function NewKey({ onClose, onMade }) {
  const [form, set] = useState({ tenant: "", name: "", role: "tenant", models: "", requests_per_min: "", day_usd: "" });
  const field = (name, rest = {}) => html`<input class="input" value=${form[name]} ...${rest} onInput=${(event) => set({ ...form, [name]: event.target.value })} />`;
  const run = async () => {
    const body = { tenant: form.tenant.trim(), role: form.role, ...(form.name ? { name: form.name } : {}) };
    if (form.models.trim()) body.models = form.models.split(/[\s,]+/).filter(Boolean);
    if (form.requests_per_min) body.limits = { requests_per_min: Number(form.requests_per_min) };
    if (form.day_usd) body.budgets = { day_usd: Number(form.day_usd) };
    onMade((await post("/v1/keys", body)).key);
  };
  return html`<${Dialog} title="New key" onClose=${onClose} actions=${html`<${Button} onClick=${onClose}>Close<//><${Action} kind="main" run=${run} disabled=${!form.tenant.trim()}>Make it<//>`}>
    <div class="fields">
      <${Field} label="Tenant">${field("tenant", { required: true })}<//><${Field} label="Name">${field("name")}<//>
      <${Field} label="Role"><select class="input" value=${form.role} onChange=${(event) => set({ ...form, role: event.target.value })}>${["tenant", "viewer", "admin"].map((role) => html`<option>${role}</option>`)}</select><//>
      <${Field} label="Models (all if empty)">${field("models", { placeholder: "openai/*" })}<//>
      <${Field} label="Requests a minute">${field("requests_per_min", { type: "number", min: 1 })}<//><${Field} label="Dollars a day">${field("day_usd", { type: "number", min: 0, step: "any" })}<//>
    </div><//>`;
}

export function Audit() {
  const list = usePages("/v1/audit?limit=100");
  if (list.error?.status === 403) return html`<section class="card"><${Empty} title="The trail is an admin's" code=${asCurl("/v1/audit")}><p class="soft">Who made, changed and revoked which key, and set which limit:</p><//></section>`;
  const columns = [
    { title: "When", cell: (row) => html`<${Ago} at=${row.at} />` },
    { title: "What", cell: (row) => row.action },
    { title: "Of", cell: (row) => html`<span class="mono">${row.subject}</span>` },
    { title: "Tenant", narrow: false, cell: (row) => row.tenant },
    { title: "By", narrow: false, cell: (row) => `${row.by.key_id ?? "–"} (${row.by.tenant})` },
    { title: "Details", fill: true, cell: (row) => html`<code>${JSON.stringify(row.details)}</code>` },
  ];
  return html`<div class="stack"><${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} /><${Card} flush title="Audit" curl="/v1/audit">${list.rows.length || list.loading
    ? html`<${Table} label="Audit" columns=${columns} rows=${list.rows} tall="64vh" foot=${list.more && html`<div class="more"><${Button} onClick=${list.next}>More<//></div>`} />`
    : html`<${Empty} title="Nothing was changed yet" />`}<//></div>`;
}
