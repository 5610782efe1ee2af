// Playground: one request to several models side by side. Each answer is a generation like any other, so a reload loses none.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { asCurl, post } from "../lib/api.js";
import { count, duration } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { go, Link, place, usePlace } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { useStore } from "../lib/store.js";
import { isRunning, useGeneration, Watching } from "../lib/streams.js";
import { Status } from "../ui/icons.js";
import { Action, Button, Card, copyText, Field, Problem, say, Switch, Typed, useAction } from "../ui/parts.js";
import { Text } from "./request/conversation.js";
import { bodyOf, fromHash, NEW, takeKept, toHash } from "./playground/form.js";
import { BreakIt, Parameters } from "./playground/parameters.js";

const PATH = "/playground";
const MOST_MODELS = 3; // a stream each, and a browser has six connections

export function Playground() {
  const { hash } = usePlace();
  const [form, setForm] = useState(() => takeKept() ?? fromHash(hash));
  const [turn, renew] = useState(0);
  const [shape, setShape] = useState("form");
  const models = useResource("/v1/models");
  const box = useRef();
  const latest = useRef(form); // before it is drawn: what is typed counts for the key that sends it
  const written = useRef(hash);
  const become = (other) => setForm((latest.current = other));
  const change = (changes) => become({ ...latest.current, ...(typeof changes === "function" ? changes(latest.current) : changes) });
  const begin = (other) => {
    become(other);
    renew((count) => count + 1); // what was typed into the one before is gone, too
  };
  const write = (text) => place.value.path === PATH && go(PATH, {}, { replace: true, hash: text });
  useEffect(() => {
    if (hash === written.current) return;
    if (hash) begin(fromHash(hash)); // another one's link, or Back
    else write(written.current);
  }, [hash]);
  useEffect(() => {
    written.current = toHash(form);
    if (written.current !== hash) write(written.current);
  }, [form]);
  const [busy, send] = useAction(async () => {
    const wrong = box.current.querySelector("[aria-invalid=true]");
    wrong?.focus();
    if (wrong) throw new Error("Not sent: a field cannot be read as it is.");
    const asked = latest.current;
    const results = await Promise.allSettled(asked.models.map((model) => post("/v1/chat/completions", bodyOf(asked, model))));
    const failed = results.find((one) => one.status === "rejected");
    if (failed) say(failed.reason.message);
    if (latest.current.models === asked.models && latest.current.ids === asked.ids) change({ ids: results.map((one) => one.value?.id ?? "") });
    else say("Asked. The models are others by now: the answers are among the requests.");
  });
  const curl = asCurl("/v1/chat/completions", { method: "POST", body: { ...bodyOf(form, form.models[0]), background: undefined, stream: true }, live: true });
  useKeys({ c: () => copyText(curl, "curl copied") });
  const byKey = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    send();
  };
  return html`
    <div class="head"><h1>Playground</h1>
      <${Button} kind="quiet" onClick=${() => begin({ ...NEW, models: [...NEW.models] })}>New<//>
      <${Button} icon="copy" title="Copy as curl (c)" onClick=${() => copyText(curl, "curl copied")}>curl<//>
      <${Button} kind="main" icon="play" title="Send (Ctrl Enter)" disabled=${busy} onClick=${send}>Send<//>
    </div>
    <div class="play" key=${turn} ref=${box} onKeyDown=${byKey}>
      <div class="stack">
        <${Models} form=${form} change=${change} known=${models.data?.data ?? []} />
        <${Card} title="Request" actions=${html`<${Switch} label="Shape of the request" value=${shape} options=${[["form", "Form"], ["json", "JSON"]]} onChange=${setShape} />`}>
          ${shape === "form" ? html`<${Messages} form=${form} change=${change} />` : html`<${AsJson} form=${form} change=${change} />`}
        <//>
        <${Card} title="Parameters"><${Parameters} form=${form} change=${change} /><//>
      </div>
      <div class="answers">${form.models.map((model, at) => html`<${AnswerOf} key=${`${at}-${form.ids[at] ?? ""}`} model=${model} id=${form.ids[at]} form=${form} change=${change} />`)}</div>
    </div>`;
}

function Models({ form, change, known }) {
  const set = (at, model) => change(({ models }) => ({ models: models.map((one, index) => (index === at ? model : one)), ids: [] }));
  return html`<${Card} title="Models" small="side by side" actions=${form.models.length < MOST_MODELS && html`<${Button} kind="quiet tiny" icon="plus" onClick=${() => change({ models: [...form.models, form.models.at(-1)], ids: [] })}>Add<//>`}>
    <datalist id="models">${known.map((model) => html`<option value=${model.id} />`)}</datalist>
    <div class="stack">${form.models.map(
      (model, at) => html`<div class="stack tight" key=${at}><div class="row"><${Typed} class="input mono grow" list="models" aria-label=${`Model ${at + 1}`} value=${model} spellcheck="false" take=${(text) => set(at, text.trim())} />
        ${form.models.length > 1 && html`<${Button} kind="quiet" icon="close" aria-label=${`Take out model ${at + 1}`} onClick=${() => change({ models: form.models.filter((_, index) => index !== at), ids: [] })} />`}</div>
        ${model.startsWith("fake/") && html`<${BreakIt} model=${model} set=${(text) => set(at, text)} />`}</div>`,
    )}</div><//>`;
}

function Messages({ form, change }) {
  const set = (at, changes) => change(({ messages }) => ({ messages: messages.map((one, index) => (index === at ? { ...one, ...changes } : one)) }));
  const add = () => change({ messages: [...form.messages, { role: form.messages.at(-1)?.role === "user" ? "assistant" : "user", content: "" }] });
  return html`<div class="stack">
    <${Field} label="System"><textarea class="input" rows="2" value=${form.system} onInput=${(event) => change({ system: event.target.value })}></textarea><//>
    ${form.messages.map((message, at) => html`<div class="stack tight" key=${at}>
      <div class="row"><select class="input role" aria-label=${`Role of message ${at + 1}`} value=${message.role} onChange=${(event) => set(at, { role: event.target.value })}>${["user", "assistant", "system", "tool"].map((role) => html`<option>${role}</option>`)}</select><span class="grow"></span>
        ${form.messages.length > 1 && html`<${Button} kind="quiet tiny" icon="close" aria-label=${`Take out message ${at + 1}`} onClick=${() => change({ messages: form.messages.filter((_, index) => index !== at) })} />`}</div>
      ${typeof message.content === "string" || !message.content ? html`<textarea class="input" rows="4" aria-label=${`Message ${at + 1}`} value=${message.content ?? ""} onInput=${(event) => set(at, { content: event.target.value })}></textarea>` : html`<p class="soft">Parts other than text: see JSON.</p>`}
    </div>`)}
    <div class="row"><${Button} kind="quiet" icon="plus" onClick=${add}>Message<//></div>
    <${Field} label="Session (empty: none)" hint="Requests of one session see the earlier ones"><${Typed} value=${form.session} pattern="[\\w.:\\-]*" take=${(text) => change({ session: text.trim() })} /><//>
  </div>`;
}

function AsJson({ form, change }) {
  const { model: _, background: __, ...body } = bodyOf(form, "");
  const read = (text) => {
    const { messages, session_id = "", ...parameters } = JSON.parse(text);
    if (!Array.isArray(messages)) throw new Error("`messages` has to be a list.");
    const hasSystem = messages[0]?.role === "system" && typeof messages[0].content === "string";
    change({ system: hasSystem ? messages[0].content : "", messages: hasSystem ? messages.slice(1) : messages, session: session_id, parameters });
  };
  return html`<div class="stack"><${Typed} as="textarea" class="input mono" rows="18" aria-label="Request as JSON" spellcheck="false" value=${JSON.stringify(body, null, 2)} take=${read} /></div>`;
}

function AnswerOf({ model, id, form, change }) {
  const [watching, watch] = useState(null);
  const { state, error, reload } = useGeneration(id ? `/v1/streams/${id}` : null);
  useEffect(() => {
    if (!id) return undefined;
    const one = new Watching({ id });
    watch(one);
    return () => one.stop();
  }, [id]);
  const small = state ? [duration(state.timings.first_chunk_ms), state.usage && `${count(state.usage.completion_tokens)} tokens`].filter(Boolean).join(" · ") : "";
  return html`<${Card} title=${html`<span class="cut mono">${model}</span>`} actions=${state && html`<${Status} status=${state.status} />${isRunning(state) && html`<${Action} kind="quiet tiny danger" icon="stop" run=${() => post(`/v1/streams/${id}/cancel`).then(reload)}>Stop<//>`}<${Link} to=${`/r/${id}`} class="button quiet tiny">open<//>`} small=${small}>
    <${Problem} error=${error} />
    ${watching ? html`<${Said} watching=${watching} goOn=${state && !isRunning(state) && form.models.length === 1 ? (text) => change({ messages: [...form.messages, { role: "assistant", content: text }, { role: "user", content: "" }], ids: [] }) : null} />` : html`<p class="soft">The answer comes here.</p>`}
  <//>`;
}

function Said({ watching, goOn }) {
  const { answer, state } = useStore(watching.store);
  return html`<div class="stack" aria-live="off">
    ${state === "reconnecting" && html`<p class="warn" role="status">Reconnecting: the text so far stays.</p>`}
    ${answer.list.map((choice) => html`<div key=${choice.index}>${choice.reasoning && html`<details><summary>Reasoning</summary><${Text} text=${choice.reasoning} form="raw" /></details>`}<${Text} text=${choice.content} form="markdown" growing=${!answer.ended} />
      ${choice.tools.filter(Boolean).map((tool) => html`<pre class="code">${tool.name}(${tool.arguments})</pre>`)}</div>`)}
    ${answer.error && html`<${Problem} error=${answer.error} />`}
    ${goOn && answer.text && !answer.error && html`<div><${Button} kind="quiet" onClick=${() => goOn(answer.text)}>Go on from here<//></div>`}
  </div>`;
}
