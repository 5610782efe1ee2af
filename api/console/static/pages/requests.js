// Requests: every generation that is kept, by whatever is known of it. The server searches; the address holds the search.
import { html, useEffect, useMemo, useRef, useState } from "../lib/dom.js";
import { asCurl, post, withQuery } from "../lib/api.js";
import { count } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { usePages } from "../lib/pages.js";
import { go, place, setQuery, usePlace } from "../lib/router.js";
import { allTenants } from "../lib/scope.js";
import { feed } from "../lib/feed.js";
import { useStore } from "../lib/store.js";
import { isRunning } from "../lib/streams.js";
import { cancelAsked, Start } from "../ui/actions.js";
import { Icon } from "../ui/icons.js";
import { Action, ask, Button, copyText, Curl, Empty, Problem, say } from "../ui/parts.js";
import { Table } from "../ui/table.js";
import { Columns, useColumns } from "./requests/columns.js";
import { Chips, Facets, filtersOf, Histogram, searchOf } from "./requests/filters.js";
import { exportRows } from "./requests/export.js";
import { Peek } from "./requests/peek.js";

const PATH = "/requests";
const PAGE = 100;

export function Requests() {
  const { query } = usePlace();
  const every = useStore(allTenants) ? "*" : undefined;
  const filters = filtersOf(query);
  const path = withQuery("/v1/streams", { limit: PAGE, tenant: every, ...searchOf(filters) });
  const list = usePages(path);
  const [checked, check] = useState(new Set());
  const [peeking, peek] = useState(false);
  const chosen = query.at ?? null;
  const live = useStore(feed);
  const columns = useColumns();
  const row = list.rows.find((one) => one.id === chosen);
  const rows = useMemo(() => withNews(list.rows, live), [list.rows, live]);
  const fresh = live.running.filter((one) => list.at_ms && one.created_at + 1 > list.asked_s && !list.rows.some((old) => old.id === one.id)).length;
  const choose = (id) => setQuery({ at: id }, { replace: true });
  const toggle = (id) => check((now) => (now.has(id) ? new Set([...now].filter((one) => one !== id)) : new Set([...now, id])));
  const turn = (by) => {
    const at = rows.findIndex((one) => one.id === chosen);
    const next = rows[Math.max(0, Math.min(rows.length - 1, at + by))];
    if (next) choose(next.id);
  };
  useKeys({
    "[": () => turn(-1),
    "]": () => turn(1),
    c: () => copyText(asCurl(row ? `/v1/streams/${row.id}` : path), "curl copied"),
    x: () => (row && isRunning(row) ? void cancelAsked(row) : false),
    Escape: () => (peeking ? peek(false) : Object.keys(filters).length ? go("/requests") : false),
  });
  return html`
    <div class="head"><h1>Requests</h1>
      <${Search} value=${query.q ?? ""} />
      <${Button} icon="again" kind="quiet" title="Ask again" aria-label="Reload" onClick=${list.reload} />
      <${Curl} path=${path} />
      <${Columns} /><${ExportMenu} path=${path} />
    </div>
    <div class="browse">
      <aside aria-label="Filters"><${Facets} filters=${filters} rows=${list.rows} tenant=${every} /></aside>
      <div class="stack">
        <${Histogram} filters=${filters} rows=${list.rows} tenant=${every} />
        <${Chips} filters=${filters} />
        <${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} />
        ${checked.size > 0 && html`<${Bulk} rows=${rows.filter((one) => checked.has(one.id))} done=${() => (check(new Set()), list.reload())} />`}
        <section class="card">
          ${fresh > 0 && html`<button class="news" onClick=${list.reload}>${count(fresh)} new: show</button>`}
          ${rows.length || list.loading
            ? html`<${Table} label="Requests" columns=${columns} rows=${rows} chosen=${chosen} onChoose=${choose} tall="calc(100vh - 250px)" checked=${checked} onCheck=${toggle}
                onOpen=${(one) => go(`/r/${one.id}`, one.tenant ? { tenant: one.tenant } : {})} onPeek=${() => peek(!peeking)}
                foot=${list.more && html`<div class="more"><${Button} disabled=${list.loading} onClick=${list.next}>${list.loading ? "Looking …" : "More"}<//></div>`} />`
            : html`<${None} filters=${filters} />`}
        </section>
      </div>
      ${peeking && row && html`<${Peek} key=${row.id} state=${row} onClose=${() => peek(false)} />`}
    </div>`;
}

/** Rows stay where they are; only what they say of themselves is brought up to date. */
function withNews(rows, live) {
  const known = new Map([...live.running, ...live.ended].map((one) => [one.id, one]));
  return rows.map((row) => (isRunning(row) && known.has(row.id) ? withChanges(row, known.get(row.id)) : row));
}

/** An event tells some of a state; of the rest the row knows more. */
function withChanges(row, news) {
  const told = (state) => Object.fromEntries(Object.entries(state).filter(([, value]) => value !== null && value !== undefined));
  return { ...row, ...told(news), metadata: row.metadata, timings: { ...row.timings, ...told(news.timings) } };
}

/** Words are searched for as they are typed; an id, and a name of the metadata with its value, once Enter says they are whole. */
function Search({ value }) {
  const [text, setText] = useState(value);
  const field = useRef();
  const timer = useRef(0);
  useEffect(() => {
    if (document.activeElement !== field.current) setText(value);
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []); // on another page it would search there
  const apply = (typed) => {
    clearTimeout(timer.current);
    if (/^chatcmpl-[0-9a-f]{32}$/.test(typed)) return go(`/r/${typed}`);
    const pair = typed.match(/^([\w.-]+):(\S+)$/);
    if (!pair) return setQuery({ q: typed || null }, { replace: true });
    setText("");
    return setQuery({ [`metadata[${pair[1]}]`]: pair[2], q: null }, { replace: true });
  };
  const typed = (event) => {
    const now = event.target.value;
    setText(now);
    clearTimeout(timer.current);
    if (!now.includes(":")) timer.current = setTimeout(() => place.value.path === PATH && apply(now.trim()), 250);
  };
  const entered = (event) => event.key === "Enter" && apply(event.target.value.trim());
  return html`<label class="search"><span class="unseen">Search requests</span><${Icon} name="search" /><input class="input" type="search" data-search placeholder="id, model, key:value" ref=${field} value=${text} onInput=${typed} onKeyDown=${entered} /><kbd>/</kbd></label>`;
}

function ExportMenu({ path }) {
  const run = async (kind) => {
    try {
      await exportRows(path, kind);
    } catch (error) {
      say(error.message);
    }
  };
  return html`<details class="menu"><summary class="button"><${Icon} name="download" />Export</summary><div class="card">
    <${Button} kind="quiet" onClick=${() => run("csv")}>CSV<//><${Button} kind="quiet" onClick=${() => run("jsonl")}>JSONL<//><${Button} kind="quiet" onClick=${() => run("batch")}>As batch input<//></div></details>`;
}

function Bulk({ rows, done }) {
  const running = rows.filter(isRunning);
  const over = rows.filter((row) => !isRunning(row));
  const cancel = async () => {
    if (!(await ask(`Cancel ${running.length} requests?`, "Their text so far is kept.", "Cancel them"))) return;
    const { data } = await post("/v1/streams/cancel", { ids: running.map((row) => row.id).slice(0, 100) });
    say(`${data.filter((one) => !one.error || one.status).length} cancelled`);
    done();
  };
  const again = async () => {
    const results = await Promise.allSettled(over.map((row) => post(`/v1/streams/${row.id}/retry`)));
    const failed = results.filter((one) => one.status === "rejected");
    say(failed.length ? `${failed.length} could not be asked again: ${failed[0].reason.message}` : `${over.length} asked again`);
    done();
  };
  return html`<div class="row bulk" role="status"><b>${count(rows.length)} chosen</b>
    <${Action} kind="danger" icon="stop" disabled=${!running.length} run=${cancel}>Cancel ${running.length}<//>
    <${Action} icon="again" disabled=${!over.length} run=${again}>Retry ${over.length}<//><${Button} kind="quiet" onClick=${done}>None<//></div>`;
}

const None = ({ filters }) =>
  Object.keys(filters).length
    ? html`<${Empty} title="Nothing is like that"><p class="soft">No request that is kept has all of these.</p><${Button} onClick=${() => go("/requests")}>Take all filters out<//><//>`
    : html`<${Empty} title="No request yet"><p class="soft">Ask something of this server, and it is here:</p><${Start} /><//>`;
