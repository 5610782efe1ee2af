// What was said: the messages of the request, then the answer, as Markdown or as it came.
import { html, useEffect, useRef, useState } from "../../lib/dom.js";
import { count } from "../../lib/format.js";
import { GrowingMarkdown } from "../../lib/markdown.js";
import { contentOf, visible } from "../../lib/text.js";
import { isRunning } from "../../lib/streams.js";
import { Button, Copy, Problem, Switch, say } from "../../ui/parts.js";

const KEY = "streamspool.raw";
const MOST_MARKDOWN = 400_000; // characters; longer texts are shown as they came unless asked otherwise
const PIECE = 20_000;

export function Conversation({ state, answer, request }) {
  const [form, setForm] = useState(localStorage.getItem(KEY) ?? "markdown");
  const choose = (name) => {
    localStorage.setItem(KEY, name);
    setForm(name);
  };
  const messages = request.data?.messages ?? [];
  const choices = answer.list;
  return html`<div class="stack talk">
    <div class="row"><${Switch} label="How texts are shown" value=${form} onChange=${choose} options=${[["markdown", "Markdown"], ["raw", "Raw"]]} />
      <span class="grow"></span>
      <${Button} icon="eye" kind="quiet" title="Have a screen reader read the answer as it is now" onClick=${() => say(answer.text.slice(-2000) || "Nothing yet")}>Read it<//></div>
    ${request.error && html`<p class="soft">The request cannot be shown: ${request.error.message}</p>`}
    ${messages.map((message, at) => html`<${Message} key=${at} message=${message} form=${form} />`)}
    ${choices.map((choice) => html`<${Choice} key=${`${answer.attempt}-${choice.index}`} choice=${choice} form=${form} many=${choices.length > 1} running=${isRunning(state) && !answer.ended} />`)}
    ${!choices.length && isRunning(state) && html`<article class="message assistant"><header>assistant</header><p class="soft">${state.status === "queued" ? "Waits for a worker." : "Nothing yet."}</p></article>`}
    ${(answer.error ?? state.error) && html`<${Problem} error=${answer.error ?? state.error} />`}
  </div>`;
}

function Message({ message, form }) {
  const { text, others } = contentOf(message.content);
  const folded = message.role === "system" || message.role === "developer";
  const body = html`
    ${text && html`<${Text} text=${text} form=${form} />`}
    ${others.map((one) => html`<span class="tag">${one}</span> `)}
    ${(message.tool_calls ?? []).map((call) => html`<${Tool} name=${call.function?.name} text=${call.function?.arguments} />`)}`;
  return html`<article class=${`message ${message.role}`}>
    <header>${String(message.role)}${message.name && html` <span class="tag">${message.name}</span>`}${message.tool_call_id && html` <span class="tag">answers ${message.tool_call_id}</span>`}<span class="grow"></span><${Copy} text=${text} title="Copy this message" /></header>
    ${folded && text.length > 400 ? html`<details><summary>${count(text.length)} characters</summary>${body}</details>` : body}
  </article>`;
}

function Choice({ choice, form, many, running }) {
  return html`<article class="message assistant">
    <header>assistant${many && html` <span class="tag">choice ${choice.index}</span>`}${choice.finish && choice.finish !== "stop" && html` <span class="tag">${choice.finish}</span>`}<span class="grow"></span><${Copy} text=${choice.content} title="Copy the answer" /></header>
    ${choice.reasoning && html`<details class="reasoning" open=${!choice.content && running}><summary>Reasoning, ${count(choice.reasoning.length)} characters</summary><${Text} text=${choice.reasoning} form="raw" /></details>`}
    ${choice.content && html`<${Text} text=${choice.content} form=${form} growing=${running} />`}
    ${choice.tools.filter(Boolean).map((tool) => html`<${Tool} name=${tool.name} text=${tool.arguments} />`)}
  </article>`;
}

const Tool = ({ name, text }) => html`<details class="tool" open><summary><code>${name || "tool"}</code></summary><pre class="code" tabindex="0">${pretty(text)}</pre></details>`;

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return visible(String(text ?? "")); // a call that is not whole yet
  }
}

/** A text of unknown make, of any length. */
export function Text({ text, form, growing = false }) {
  const [anyway, force] = useState(false);
  const long = text.length > MOST_MARKDOWN;
  if (form === "markdown" && (!long || anyway)) return html`<${Markdown} text=${text} growing=${growing} />`;
  return html`<div>
    ${form === "markdown" && html`<p class="soft">${count(text.length)} characters, shown as they came. <${Button} kind="quiet tiny" onClick=${() => force(true)}>Show as Markdown<//></p>`}
    <${Raw} text=${text} growing=${growing} />
  </div>`;
}

function Markdown({ text, growing }) {
  const box = useRef();
  const drawn = useRef(null);
  const next = useRef({ timer: 0, text });
  next.current.text = text;
  useEffect(() => {
    drawn.current = new GrowingMarkdown(box.current);
    return () => clearTimeout(next.current.timer);
  }, []);
  useEffect(() => {
    // A long text is drawn less often: the page has to stay quick while it grows.
    if (next.current.timer) return;
    const draw = () => {
      next.current.timer = 0;
      const began = performance.now();
      drawn.current?.draw(visible(next.current.text));
      next.current.spent = performance.now() - began;
    };
    if (!next.current.spent || !growing) draw();
    else next.current.timer = setTimeout(draw, Math.min(2000, 8 * next.current.spent));
  }, [text, growing]);
  return html`<div class=${`markdown ${growing ? "growing" : ""}`} dir="auto" ref=${box} aria-live="off"></div>`;
}

/** In pieces, so that the browser need not lay out what is not in view. */
function Raw({ text, growing }) {
  const pieces = [];
  for (let at = 0; at < text.length; at += PIECE) pieces.push(text.slice(at, at + PIECE));
  return html`<pre class=${`raw ${growing ? "growing" : ""}`} dir="auto" tabindex="0">${pieces.map((piece, at) => html`<span class=${pieces.length > 4 ? "part" : ""} key=${at}>${visible(piece)}</span>`)}</pre>`;
}
