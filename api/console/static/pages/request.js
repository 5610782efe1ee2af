// One request: what was asked, what came, when, in which frames, and what can be done with it.
import { html, useEffect, useMemo, useState } from "../lib/dom.js";
import { Answer } from "../lib/answer.js";
import { asCurl, origin } from "../lib/api.js";
import { count, dollars, duration, shortId } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { go, Link, setQuery, usePlace } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { useStore } from "../lib/store.js";
import { isRunning, permalink, RUNNING, streamPath, useGeneration, Watching } from "../lib/streams.js";
import { cancelAsked, forget, retry, ShareDialog } from "../ui/actions.js";
import { Status } from "../ui/icons.js";
import { Action, Ago, Button, Code, Copy, copyText, Curl, Empty, Problem, Since, Tabs } from "../ui/parts.js";
import { Conversation } from "./request/conversation.js";
import { Events } from "./request/events.js";
import { Sent } from "./request/sent.js";
import { Timeline } from "./request/timeline.js";
import { toPlayground } from "./playground/form.js";

const TABS = ["conversation", "timeline", "events", "request", "errors"];

export function Request({ id }) {
  const { query } = usePlace();
  const { tenant } = query;
  const { state: told, error, at_ms, reload } = useGeneration(streamPath({ id, tenant }));
  const state = useMemo(() => told && { ...told, tenant }, [told, tenant]);
  const tab = TABS.includes(query.tab) ? query.tab : "conversation";
  const [watching, watch] = useState(null);
  const [sharing, share] = useState(false);
  useEffect(() => {
    if (!state) return undefined;
    const one = new Watching(state);
    watch(one);
    return () => one.stop();
  }, [!!state, id]);
  const step = (by) => setQuery({ tab: TABS[(TABS.indexOf(tab) + by + TABS.length) % TABS.length] }, { replace: true });
  const curl = asCurl(`/v1/streams/${id}`, { live: true });
  useKeys({
    "[": () => step(-1),
    "]": () => step(1),
    c: () => copyText(curl, "curl copied"),
    s: () => share(true),
    x: () => (state && isRunning(state) ? void cancelAsked(state).then(reload) : false),
    Escape: () => (sharing ? share(false) : go("/requests")),
  });
  if (!state) return error ? html`<${Gone} id=${id} error=${error} reload=${reload} />` : html`<${Waiting} id=${id} />`;
  return html`
    <${Head} state=${state} share=${() => share(true)} reload=${reload} curl=${curl} />
    <div class="stack">
      <${Problem} error=${error} at_ms=${at_ms} reload=${reload} />
      ${watching && html`<${Body} key=${id} state=${state} watching=${watching} tab=${tab} reload=${reload} />`}
    </div>
    ${sharing && html`<${ShareDialog} state=${state} onClose=${() => share(false)} />`}`;
}

const Waiting = ({ id }) => html`<div class="head"><h1>Request <span class="mono soft">${shortId(id)}</span></h1></div><div class="skeleton"></div>`;

/** Of an answer whose text is gone: what the history has. */
const Known = ({ state }) => html`
  <div class="head">
    <${Link} to="/requests" class="button quiet" title="All requests (Esc)" aria-label="Back to all requests">‹<//>
    <h1><${Status} status=${state.status} /><span class="cut">${state.model}</span>${state.served_by && state.served_by !== state.model && html`<span class="soft cut">→ ${state.served_by}</span>`}</h1>
  </div>
  <${Figures} state=${state} />
  <div class="stack">
    <p class="soft" role="status">The text of this answer is not kept any more. This is what the history still has of it.</p>
    <${Timeline} state=${state} answer=${new Answer()} />
    ${(state.error || state.refused.length > 0 || state.interrupted.length > 0) && html`<${Errors} state=${state} />`}
  </div>`;

const Gone = ({ id, error, reload }) =>
  error.stream
    ? html`<${Known} state=${error.stream} />`
    : html`
  <div class="head"><h1>Request <span class="mono soft">${shortId(id)}</span></h1></div>
  ${error.status === 404
    ? html`<${Empty} title="This answer is not here any more, or never was" code=${asCurl(`/v1/streams/${id}`, { headers: { Accept: "application/json" } })}>
        <p class="soft">Answers are kept for a day after their end (STREAMSPOOL_RETENTION_S), stored ones for a month. Another tenant's is not shown either. What the server says of it:</p><//>`
    : html`<${Problem} error=${error} reload=${reload} />`}`;

function Head({ state, share, reload, curl }) {
  const running = isRunning(state);
  const served = state.served_by && state.served_by !== state.model;
  return html`
    <div class="head">
      <${Link} to="/requests" class="button quiet" title="All requests (Esc)" aria-label="Back to all requests">‹<//>
      <h1><${Status} status=${state.status} /><span class="cut">${state.model}</span>${served && html`<span class="soft cut">→ ${state.served_by}</span>`}</h1>
      <div class="row">
        ${running && html`<${Button} kind="danger" icon="stop" title="Cancel (x)" onClick=${() => cancelAsked(state).then(reload)}>Cancel<//>`}
        ${!running && html`<${Action} icon="again" run=${() => retry(state)} title="The same request, as a new one">Retry<//>`}
        <${Action} icon="playground" run=${() => toPlayground(state)}>Playground<//>
        <${Button} icon="share" title="Share (s)" onClick=${share}>Share<//>
        <details class="menu"><summary class="button quiet" aria-label="More">⋯</summary><div class="card">
          <${Button} kind="quiet" icon="copy" onClick=${() => copyText(state.id, "Id copied")}>Copy id<//>
          <${Button} kind="quiet" icon="copy" onClick=${() => copyText(permalink(state.id), "Link copied")}>Copy link<//>
          <${Button} kind="quiet" icon="copy" onClick=${() => copyText(curl, "curl copied")}>Copy as curl<//>
          <${Button} kind="quiet" icon="copy" onClick=${() => copyText(asPython(state.id), "Python copied")}>Copy as Python<//>
          <${Button} kind="quiet danger" icon="bin" onClick=${() => forget(state)}>Delete<//>
        </div></details>
      </div>
    </div>
    <${Figures} state=${state} />`;
}

const asPython = (id) => `from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key="KEY")
print(client.chat.completions.retrieve("${id}").choices[0].message.content)`;

function Figures({ state }) {
  const { timings: ms, usage } = state;
  const source = state.usage_source && state.usage_source !== "provider" ? ` (${state.usage_source})` : "";
  return html`<dl class="figures">
    <div><dt>Asked</dt><dd><${Ago} at=${state.created_at} /></dd></div>
    <div><dt>Waited</dt><dd>${duration(ms.queued_ms)}</dd></div>
    <div><dt>First chunk</dt><dd>${duration(ms.first_chunk_ms)}</dd></div>
    <div><dt>Total</dt><dd>${ms.total_ms === null ? html`<${Since} at=${state.created_at} />` : duration(ms.total_ms)}</dd></div>
    <div><dt>Tokens</dt><dd title=${`by ${state.usage_source ?? "nobody yet"}`}>${usage ? `${count(usage.prompt_tokens)} + ${count(usage.completion_tokens)}${source}` : `${count(state.chunks)} chunks`}</dd></div>
    <div><dt>Cost</dt><dd title=${`by ${state.cost_source ?? "nobody yet"}`}>${state.cost_usd === null ? (state.cost_source ?? "–") : dollars(state.cost_usd)}</dd></div>
    <div><dt>Attempts</dt><dd class=${state.attempts > 1 ? "warn" : ""}>${state.attempts || "–"}</dd></div>
    <div><dt>Viewers</dt><dd>${state.viewers}</dd></div>
    <div class="wide"><dt>Id</dt><dd class="mono cut">${state.id} <${Copy} text=${state.id} title="Copy the id" /><${Curl} path=${`/v1/streams/${state.id}`} headers=${{ Accept: "application/json" }} /></dd></div>
  </dl>`;
}

const STATES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting: the text so far stays", waiting: "In turns with other tabs", hidden: "Asleep", ended: "", failed: "Cannot be watched" };

function Body({ state, watching, tab, reload }) {
  const shown = useStore(watching.store);
  const request = useResource(streamPath(state, "/request"));
  useEffect(() => {
    if (shown.answer.ended && RUNNING.includes(state.status)) reload();
  }, [shown.answer.ended]);
  const problems = [state.error, ...state.refused].filter(Boolean).length;
  const parts = { state, answer: shown.answer, request };
  const Part = { conversation: Conversation, timeline: Timeline, events: Events, request: Sent, errors: Errors }[tab];
  return html`
    <div class="row watchline"><${Tabs} label="Parts of the request" value=${tab} onChange=${(name) => setQuery({ tab: name }, { replace: true })}
      options=${[["conversation", "Conversation"], ["timeline", "Timeline"], ["events", "Events", count(shown.answer.frames.length + shown.answer.dropped)], ["request", "Request"], ["errors", "Errors", problems || null]]} />
      <span class="soft" role="status" aria-live="polite">${STATES[shown.state] && html`<i class="dot" data-state=${shown.state}></i> ${STATES[shown.state]}`}</span></div>
    ${shown.state === "failed" && html`<${Problem} error=${shown.problem} />`}
    <div role="tabpanel" aria-labelledby=${`tab-${tab}`}><${Part} ...${parts} /></div>`;
}

function Errors({ state }) {
  if (!state.error && !state.refused.length && !state.interrupted.length) return html`<${Empty} title="Nothing went wrong"><p class="soft">Refusals of providers, lost workers and the last error would stand here.</p><//>`;
  return html`<div class="stack">
    ${state.error && html`<div class="problem"><div class="grow"><b>${state.error.code ?? state.error.type}</b>${state.error.status && ` · ${state.error.status}`}<p>${state.error.message}</p>${state.error.param && html`<p class="soft">param: ${state.error.param}</p>`}</div></div>`}
    ${state.interrupted.map((why, at) => html`<div class="problem"><div class="grow"><b>Attempt ${at + 1} was interrupted</b><p>${why ?? "unknown"}: attempt ${at + 2} took over.</p></div></div>`)}
    ${state.refused.map((one) => html`<div class="problem"><div class="grow"><b>${one.model} refused</b><p>${[one.status, one.code].filter(Boolean).join(" ")}</p></div></div>`)}
    ${state.error && html`<${Code} text=${JSON.stringify(state.error, null, 2)} />`}
  </div>`;
}
