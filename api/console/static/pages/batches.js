// Batches, files and webhooks: how far each batch is, what failed in it, what was uploaded, and what was told to whom.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { asCurl, call, get, post, remove, root, withQuery } from "../lib/api.js";
import { absolute, bytes, compact, count } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { usePages } from "../lib/pages.js";
import { go, goLater, Link, setQuery, usePlace } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { Following } from "../lib/sse.js";
import { Status } from "../ui/icons.js";
import { Action, Ago, ask, Bar, Button, Card, Code, copyText, Empty, Facts, Field, Problem, say, Tabs, Typed } from "../ui/parts.js";
import { Table } from "../ui/table.js";

const BATCHES = "/v1/batches?limit=100";
const FILES = "/v1/files?limit=1000";
const RUNS = ["validating", "in_progress", "finalizing", "cancelling"];
const RETRY_MS = 2000;
const TABS = [["batches", "Batches"], ["files", "Files"], ["webhooks", "Webhooks"]];
const LINE = { custom_id: "1", method: "POST", url: "/v1/chat/completions", body: { model: "fake/echo", messages: [{ role: "user", content: "Hello" }] } };

export function Batches() {
  const { query } = usePlace();
  const tab = query.tab ?? "batches";
  const step = (by) => setQuery({ tab: TABS[(TABS.findIndex(([name]) => name === tab) + by + TABS.length) % TABS.length][0] }, { replace: true });
  useKeys({ "[": () => step(-1), "]": () => step(1) });
  const Part = { batches: List, files: Files, webhooks: Webhooks }[tab] ?? List;
  return html`<div class="head"><h1>Batches</h1></div><div class="stack"><${Tabs} label="Batches, files, webhooks" value=${tab} options=${TABS} onChange=${(name) => setQuery({ tab: name }, { replace: true })} /><div role="tabpanel" aria-labelledby=${`tab-${tab}`}><${Part} /></div></div>`;
}

function List() {
  const list = usePages(BATCHES);
  const [chosen, choose] = useState(null);
  useKeys({ c: () => copyText(asCurl(chosen ? `/v1/batches/${chosen}` : BATCHES), "curl copied") });
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && list.rows.some((row) => RUNS.includes(row.status)) && list.refresh(), 3000);
    return () => clearInterval(timer);
  }, [list.rows]);
  return html`<div class="stack"><${NewBatch} done=${list.reload} />
    <${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} />
    <${Card} flush title="Batches" curl=${BATCHES}>${list.rows.length || list.loading || list.error
      ? html`<${Table} label="Batches" columns=${COLUMNS} rows=${list.rows} chosen=${chosen} onChoose=${choose} onOpen=${(row) => go(`/batches/${row.id}`)} tall="60vh" foot=${list.more && html`<div class="more"><${Button} onClick=${list.next}>More<//></div>`} />`
      : html`<${Empty} title="No batch yet" code=${`echo '${JSON.stringify(LINE)}' > in.jsonl\nstreamspool batch in.jsonl -m fake/echo -o out.jsonl`}><p class="soft">Up to 50,000 requests in one file, on any provider; each line runs once. On a command line:</p><//>`}<//></div>`;
}

const done = (row) => row.request_counts.completed + row.request_counts.failed;
const COLUMNS = [
  { title: "Status", cell: (row) => html`<${Status} status=${row.status} />` },
  { title: "Batch", cell: (row) => html`<${Link} to=${`/batches/${row.id}`} class="mono cut">${row.id}<//>` },
  { title: "Progress", fill: true, cell: (row) => html`<${Bar} value=${done(row)} most=${row.request_counts.total || 1} label=${`Progress of ${row.id}`} />` },
  { title: "Done", right: true, cell: (row) => `${compact(done(row))} of ${compact(row.request_counts.total)}` },
  { title: "Failed", right: true, narrow: false, cell: (row) => (row.request_counts.failed ? html`<span class="bad">${count(row.request_counts.failed)}</span>` : "–") },
  { title: "Endpoint", narrow: false, cell: (row) => html`<code>${row.endpoint}</code>` },
  { title: "Model", narrow: false, cell: (row) => row.model ?? "several" },
  { title: "Made", right: true, cell: (row) => html`<${Ago} at=${row.created_at} />` },
];

const ENDPOINTS = ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions", "/v1/moderations"];

/** Looks at the first lines before anything is sent: what is no batch is told at once. */
async function checkLines(file) {
  const head = (await file.slice(0, 65_536).text()).split("\n");
  if (file.size > 65_536) head.pop();
  const seen = new Set();
  head.forEach((text, at) => {
    if (!text && at === head.length - 1) return;
    let line;
    try {
      line = JSON.parse(text);
    } catch (error) {
      throw new Error(`Line ${at + 1} is no JSON: ${error.message}`);
    }
    for (const name of ["custom_id", "method", "url", "body"]) if (!(name in line)) throw new Error(`Line ${at + 1} has no ${name}.`);
    if (seen.has(line.custom_id)) throw new Error(`Line ${at + 1} has the custom_id of another line: ${line.custom_id}`);
    seen.add(line.custom_id);
  });
  if (!seen.size) throw new Error("There is no line in this file.");
  return JSON.parse(head[0]).url;
}

async function upload(file, purpose) {
  const form = new FormData();
  form.set("purpose", purpose);
  form.set("file", file);
  return (await call("POST", "/v1/files", { body: form })).json();
}

function NewBatch({ done: finished }) {
  const picked = useRef();
  const [endpoint, setEndpoint] = useState(ENDPOINTS[0]);
  const [span, setSpan] = useState("24h");
  const look = async () => {
    const file = picked.current.files[0];
    if (!file) return;
    try {
      const url = await checkLines(file);
      if (picked.current?.files[0] === file) setEndpoint(url);
    } catch (error) {
      say(error.message);
    }
  };
  const run = async () => {
    const then = goLater();
    const file = picked.current.files[0];
    if (!file) throw new Error("Choose a file of lines first.");
    await checkLines(file);
    const stored = await upload(file, "batch");
    const batch = await post("/v1/batches", { input_file_id: stored.id, endpoint, completion_window: span });
    finished();
    then(`/batches/${batch.id}`);
  };
  return html`<details class="card new"><summary>New batch</summary><div class="body row">
    <${Field} label="File of lines (JSONL)"><input class="input" type="file" accept=".jsonl,.ndjson,.json,application/jsonl" ref=${picked} onChange=${look} /><//>
    <${Field} label="Endpoint"><select class="input" value=${endpoint} onChange=${(event) => setEndpoint(event.target.value)}>${ENDPOINTS.map((one) => html`<option>${one}</option>`)}</select><//>
    <${Field} label="Window"><${Typed} value=${span} take=${setSpan} size="6" /><//>
    <${Action} kind="main" run=${run}>Start<//></div></details>`;
}

function Files() {
  const list = useResource(FILES);
  const picked = useRef();
  const [chosen, choose] = useState(null);
  useKeys({ c: () => copyText(asCurl(FILES), "curl copied") });
  const send = async () => {
    const file = picked.current.files[0];
    if (!file) throw new Error("Choose a file first.");
    await upload(file, "user_data");
    say("Uploaded");
    list.reload();
  };
  const forget = async (row) => {
    if (!(await ask("Delete this file?", `${row.filename}, ${bytes(row.bytes)}.`, "Delete it"))) return;
    await remove(`/v1/files/${row.id}`);
    list.reload();
  };
  const columns = [
    { title: "Name", fill: true, cell: (row) => html`<a href=${`${root}/v1/files/${row.id}/content`} download=${row.filename}>${row.filename}</a>` },
    { title: "Id", narrow: false, cell: (row) => html`<span class="mono soft">${row.id}</span>` },
    { title: "Purpose", cell: (row) => row.purpose },
    { title: "Size", right: true, cell: (row) => bytes(row.bytes) },
    { title: "Made", right: true, narrow: false, cell: (row) => html`<${Ago} at=${row.created_at} />` },
    { title: "Kept until", right: true, narrow: false, cell: (row) => absolute(row.expires_at) },
    { title: html`<span class="unseen">Delete</span>`, cell: (row) => html`<${Action} kind="quiet tiny" icon="bin" aria-label=${`Delete ${row.filename}`} run=${() => forget(row)} />` },
  ];
  return html`<div class="stack"><${Problem} error=${list.error} at_ms=${list.at_ms} reload=${list.reload} />
    <${Card} flush title="Files" curl=${FILES} actions=${html`<label class="unseen" for="upload">File to upload</label><input id="upload" class="input narrowfile" type="file" ref=${picked} /><${Action} run=${send}>Upload<//>`}>
      ${list.data?.data.length ? html`<${Table} label="Files" columns=${columns} rows=${list.data.data} chosen=${chosen} onChoose=${choose} tall="60vh" />` : html`<${Empty} title="No file" code=${`curl -s '${location.origin}${root}/v1/files' -F purpose=user_data -F file=@notes.txt`}><p class="soft">What batches are made of, and what they leave, is here. To upload one:</p><//>`}<//></div>`;
}

/** Deliveries are told of what they are about: of the newest batches and background requests that have one. */
function Webhooks() {
  const streams = useResource("/v1/streams?limit=100", { every_ms: 5000 });
  const batches = useResource("/v1/batches?limit=100");
  const [chosen, choose] = useState(null);
  const rows = [...(streams.data?.data ?? []), ...(batches.data?.data ?? [])].filter((one) => one.webhook);
  const again = async (row) => {
    await post(`/v1/${row.object === "batch" ? "batches" : "streams"}/${row.id}/redeliver`);
    say("It is sent once more");
    streams.reload();
  };
  const columns = [
    { title: "About", cell: (row) => html`<${Link} to=${row.object === "batch" ? `/batches/${row.id}` : `/r/${row.id}`} class="mono">${row.id}<//>` },
    { title: "Delivery", fill: true, cell: (row) => Object.entries(row.webhook).filter(([, value]) => value !== null && typeof value !== "object").map(([name, value]) => `${name} ${/_at$/.test(name) ? absolute(value) : value}`).join(" · ") },
    { title: "Ended", right: true, narrow: false, cell: (row) => html`<${Ago} at=${row.ended_at ?? row.completed_at} />` },
    { title: html`<span class="unseen">Redeliver</span>`, cell: (row) => html`<${Action} kind="tiny" icon="again" run=${() => again(row)}>Redeliver<//>` },
  ];
  return html`<div class="stack"><${Problem} error=${streams.error ?? batches.error} at_ms=${streams.at_ms} reload=${streams.reload} />
    <${Card} flush title="Webhooks" small="of the newest 100 requests and batches" curl="/v1/streams?limit=100">${rows.length
      ? html`<${Table} label="Webhooks" columns=${columns} rows=${rows} chosen=${chosen} onChoose=${choose} tall="60vh" />`
      : html`<${Empty} title="No webhook" code=${"export STREAMSPOOL_WEBHOOK_SECRET=whsec_$(head -c 32 /dev/urandom | base64)\nstreamspool up"}><p class="soft">A request with <code>"webhook": {"url": …}</code> has its address called at its end, signed. The server needs a secret for it:</p><//>`}<//></div>`;
}

/** The batch, by its own stream of events as long as it runs. */
function useBatch(id) {
  const [held, hold] = useState({ batch: null, error: null, state: "connecting" });
  const [turn, again] = useState(0);
  useEffect(() => {
    let following = null;
    let stopped = false;
    let timer = 0;
    const learn = () => get(`/v1/batches/${id}`).then((batch) => {
      if (stopped) return;
      hold({ batch, error: null, state: "ended" });
      if (!RUNS.includes(batch.status)) return;
      following = new Following(`/v1/batches/${id}/events`, {
        event: (event) => {
          if (event.data === "[DONE]") return true;
          hold((now) => ({ ...now, batch: JSON.parse(event.data) }));
          return false;
        },
        state: (state) => hold((now) => ({ ...now, state })),
      });
    }, (error) => {
      if (stopped) return;
      hold((now) => ({ ...now, error }));
      if (!error.status || error.status >= 500 || error.status === 429) timer = setTimeout(learn, RETRY_MS);
    });
    learn();
    return () => {
      stopped = true;
      clearTimeout(timer);
      following?.stop();
    };
  }, [id, turn]);
  return { ...held, reload: () => again((number) => number + 1) };
}

export function Batch({ id }) {
  const { batch, error, state, reload } = useBatch(id);
  useKeys({ c: () => copyText(asCurl(`/v1/batches/${id}`), "curl copied"), Escape: () => go("/batches"), x: () => (batch && RUNS.includes(batch.status) ? void cancel() : false) });
  const cancel = async () => {
    if (await ask("Cancel this batch?", "What is finished is kept; every other line is in the errors.", "Cancel it")) await post(`/v1/batches/${id}/cancel`).then(reload);
  };
  const facets = withQuery("/v1/streams/facets", { batch_id: id });
  const failed = useResource(batch?.request_counts.failed ? facets : null, { every_ms: 10_000 }).data?.facets.error.values ?? [];
  if (!batch) return html`<div class="head"><h1>Batch</h1></div><${Problem} error=${error} reload=${reload} />`;
  const counts = batch.request_counts;
  const errors = Object.entries(Object.groupBy?.(batch.errors?.data ?? [], (one) => one.code) ?? {});
  return html`
    <div class="head"><${Link} to="/batches" class="button quiet" title="All batches (Esc)" aria-label="Back to all batches">‹<//><h1><${Status} status=${batch.status} /><span class="cut mono">${id}</span></h1>
      ${state === "reconnecting" && html`<span class="warn" role="status">Reconnecting</span>`}
      ${RUNS.includes(batch.status) && html`<${Action} kind="danger" icon="stop" run=${cancel}>Cancel<//>`}
      <a class="button" href=${`${root}/v1/batches/${id}/output`} download=${`${id}-output.jsonl`}>Answers so far</a><a class="button" href=${`${root}/v1/batches/${id}/errors`} download=${`${id}-errors.jsonl`}>Errors</a></div>
    <div class="stack">
      <${Problem} error=${error} reload=${reload} />
      <${Card} title="Progress" small=${`${count(done(batch))} of ${count(counts.total)} lines`} curl=${`/v1/batches/${id}`}>
        <${Bar} value=${done(batch)} most=${counts.total || 1} label="Progress" />
        <p class="soft">${count(counts.completed)} answered, ${count(counts.failed)} failed. ${batch.usage && html`${count(batch.usage.input_tokens)} + ${count(batch.usage.output_tokens)} tokens.`}</p><//>
      <div class="grid2">
        <${Card} title="What it is"><${Facts} rows=${[["Endpoint", batch.endpoint], ["Model", batch.model ?? "several"], ["Window", batch.completion_window], ["Input", html`<span class="mono">${batch.input_file_id}</span>`], ["Output", batch.output_file_id], ["Made", absolute(batch.created_at)], ["Expires", absolute(batch.expires_at)], ["Ended", absolute(batch.completed_at ?? batch.failed_at ?? batch.cancelled_at ?? batch.expired_at)]]} /><p><${Link} to="/requests" query=${{ batch_id: id }}>Its lines as requests<//></p><//>
        <${Card} title="Errors of lines" small=${failed.length ? "a code leads to its requests" : counts.failed ? "" : "none"} curl=${facets}><ul class="lines">${failed.map((one) => html`<li key=${one.value}><${Link} to="/requests" query=${{ batch_id: id, error: one.value }}>${one.value}<//><span class="soft">${count(one.count)}</span></li>`)}</ul>
          ${counts.failed > 0 && !failed.length && html`<p class="soft">No request of these is kept any more. The file of errors has them.</p>`}<//>
        ${errors.length > 0 && html`<${Card} title="Errors of the input">${errors.map(([code, all]) => html`<details><summary><b>${code}</b> ${count(all.length)}</summary><${Code} text=${all.slice(0, 20).map((one) => `${one.line ? `line ${one.line}: ` : ""}${one.message}`).join("\n")} /></details>`)}<//>`}
      </div>
    </div>`;
}
