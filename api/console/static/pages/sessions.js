// Sessions: conversations that are remembered, their transcripts, and which of their requests run.
import { html, useState } from "../lib/dom.js";
import { asCurl, remove } from "../lib/api.js";
import { bytes, compact, count, shortId } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { go, goLater, Link } from "../lib/router.js";
import { usePages } from "../lib/pages.js";
import { useResource } from "../lib/resource.js";
import { contentOf } from "../lib/text.js";
import { Action, Ago, ask, Button, Card, copyText, Curl, Empty, Problem, say } from "../ui/parts.js";
import { Table } from "../ui/table.js";
import { Text } from "./request/conversation.js";

const LIST = "/v1/sessions?limit=100";
const EXAMPLE = { model: "fake/echo", session_id: "ann-1", messages: [{ role: "user", content: "My name is Ann" }] };

export function Sessions() {
  const list = usePages(LIST);
  const [chosen, choose] = useState(null);
  useKeys({ c: () => copyText(asCurl(chosen ? `/v1/sessions/${chosen}` : LIST), "curl copied") });
  const open = (row) => go(`/sessions/${encodeURIComponent(row.id)}`);
  return html`
    <div class="head"><h1>Sessions</h1><${Curl} path=${LIST} /></div>
    <div class="stack"><${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} />
    <section class="card">${list.rows.length || list.loading || list.error
      ? html`<${Table} label="Sessions" columns=${COLUMNS} rows=${list.rows} chosen=${chosen} onChoose=${choose} onOpen=${open} tall="calc(100vh - 110px)" foot=${list.more && html`<div class="more"><${Button} onClick=${list.next}>More<//></div>`} />`
      : html`<${Empty} title="No session yet" code=${asCurl("/v1/chat/completions", { method: "POST", body: EXAMPLE })}><p class="soft">Give requests the same <code>session_id</code>, and each has the earlier messages before it:</p><//>`}</section></div>`;
}

const COLUMNS = [
  { title: "Session", fill: true, cell: (row) => html`<${Link} to=${`/sessions/${encodeURIComponent(row.id)}`} class="mono">${row.id}<//>` },
  { title: "Turns", right: true, cell: (row) => count(row.turns) },
  { title: "Open", right: true, cell: (row) => (row.open?.length ? html`<span class="warn">${row.open.length}</span>` : "–") },
  { title: "Tokens", right: true, narrow: false, cell: (row) => compact(row.tokens) },
  { title: "Size", right: true, narrow: false, cell: (row) => bytes(row.bytes) },
  { title: "Created", right: true, narrow: false, cell: (row) => html`<${Ago} at=${row.created_at} />` },
  { title: "Used", right: true, cell: (row) => html`<${Ago} at=${row.updated_at} />` },
];

export function Session({ id }) {
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  const session = useResource(path, { every_ms: 3000 });
  const messages = useResource(`${path}/messages?limit=100`, { every_ms: 5000 });
  useKeys({ c: () => copyText(asCurl(`${path}/messages`), "curl copied"), Escape: () => go("/sessions") });
  const forget = async () => {
    if (!(await ask("Delete this session?", "What runs in it is cancelled. Its requests stay.", "Delete it"))) return;
    const then = goLater();
    await remove(path);
    say("Deleted");
    then("/sessions");
  };
  const found = session.data;
  return html`
    <div class="head"><${Link} to="/sessions" class="button quiet" title="All sessions (Esc)" aria-label="Back to all sessions">‹<//><h1><span class="cut mono">${id}</span></h1>
      <${Link} to="/requests" query=${{ session_id: id }} class="button">Its requests<//><${Action} kind="danger" icon="bin" run=${forget}>Delete<//></div>
    <div class="stack">
      <${Problem} error=${session.error ?? messages.error} at_ms=${session.at_ms} reload=${session.reload} />
      ${found && html`<dl class="figures"><div><dt>Turns</dt><dd>${count(found.turns)}</dd></div><div><dt>Tokens</dt><dd>${compact(found.tokens)}</dd></div><div><dt>Size</dt><dd>${bytes(found.bytes)}</dd></div><div><dt>Used</dt><dd><${Ago} at=${found.updated_at} /></dd></div>
        <div><dt>Open</dt><dd>${found.open.length ? found.open.map((one) => html`<${Link} to=${`/r/${one}`} class="mono">${shortId(one)}<//> `) : "none"}</dd></div></dl>`}
      <${Card} title="Transcript" small=${messages.data?.has_more ? "the first 100 messages" : ""} curl=${`${path}/messages`}><div class="stack talk">
        ${(messages.data?.data ?? []).map((message) => html`<article class=${`message ${message.role}`} key=${message.id}><header>${message.role}<span class="grow"></span><${Link} to=${`/r/${message.generation_id}`} class="mono">${shortId(message.generation_id)}<//></header><${Text} text=${contentOf(message.content).text} form="markdown" /></article>`)}
        ${messages.data?.data.length === 0 && html`<p class="soft">No turn has ended yet.</p>`}</div><//>
    </div>`;
}
