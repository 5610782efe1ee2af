// The columns of the list of requests: which there are, and which are shown, as the reader has chosen and this browser keeps it.
import { html, useMemo } from "../../lib/dom.js";
import { compact, count, dollars, duration, shortId } from "../../lib/format.js";
import { Link } from "../../lib/router.js";
import { Store, useStore } from "../../lib/store.js";
import { Icon, Status } from "../../ui/icons.js";
import { Ago } from "../../ui/parts.js";

const KEY = "streamspool.columns";
const tokens = (row) => (row.usage ? row.usage.total_tokens : null);

const COLUMNS = [
  { title: "Status", always: true, cell: (row) => html`<${Status} status=${row.status} />` },
  { title: "Model", always: true, cell: (row) => html`<${Link} to=${`/r/${row.id}`} query=${row.tenant ? { tenant: row.tenant } : {}} class="cut model" title=${row.id}>${row.served_by ?? row.model}<//>` },
  { title: "Id", wide: true, cell: (row) => html`<span class="mono soft">${shortId(row.id)}</span>` },
  { title: "What", fill: true, narrow: false, cell: (row) => html`<span class="soft">${row.error ? html`<span class="bad">${row.error.code}</span>` : what(row)}</span>` },
  { title: "Tenant", off: true, narrow: false, cell: (row) => row.tenant ?? "–" },
  { title: "Session", off: true, narrow: false, cell: (row) => row.session_id ?? "–" },
  { title: "Attempts", off: true, right: true, narrow: false, cell: (row) => count(row.attempts || null) },
  { title: "Finish", off: true, narrow: false, cell: (row) => row.finish_reasons?.filter(Boolean).join(", ") || "–" },
  { title: "Asked", right: true, cell: (row) => html`<${Ago} at=${row.created_at} />` },
  { title: "Waited", off: true, right: true, narrow: false, cell: (row) => duration(row.timings.queued_ms) },
  { title: "First", right: true, narrow: false, cell: (row) => duration(row.timings.first_chunk_ms) },
  { title: "Total", right: true, cell: (row) => duration(row.timings.total_ms) },
  { title: "Tokens", right: true, narrow: false, cell: (row) => compact(tokens(row)) },
  { title: "Cost", right: true, narrow: false, cell: (row) => dollars(row.cost_usd) },
];

function what(row) {
  const parts = [row.tenant, row.session_id && `session ${row.session_id}`, row.batch_id && "batch line", row.background && "background"];
  const data = Object.entries(row.metadata).map(([key, value]) => `${key}:${value}`);
  return [...parts, ...data].filter(Boolean).join(" · ");
}

/** Title → whether it is shown, of those that are not as they are by themselves. */
const chosen = new Store(kept());

addEventListener("storage", ({ key }) => key === KEY && chosen.set(kept())); // another tab's choice: this one's next is made of it

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

const isShown = (column, choice) => column.always || (choice[column.title] ?? !column.off);

export function useColumns() {
  const choice = useStore(chosen);
  return useMemo(() => COLUMNS.filter((column) => isShown(column, choice)), [choice]);
}

function choose(title, on) {
  chosen.update((choice) => ({ ...choice, [title]: on }));
  localStorage.setItem(KEY, JSON.stringify(chosen.value));
}

export function Columns() {
  const choice = useStore(chosen);
  return html`<details class="menu narrow-hidden"><summary class="button quiet"><${Icon} name="table" />Columns</summary><div class="card">${COLUMNS.filter((column) => !column.always).map(
    (column) => html`<label class="row check" key=${column.title}><input type="checkbox" checked=${isShown(column, choice)} onChange=${(event) => choose(column.title, event.target.checked)} />${column.title}</label>`,
  )}</div></details>`;
}
