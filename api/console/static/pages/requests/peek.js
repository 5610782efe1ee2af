// A look at one request beside the list; the list keeps the focus, so j and k go on.
import { html, useEffect, useState } from "../../lib/dom.js";
import { count, dollars, duration } from "../../lib/format.js";
import { go } from "../../lib/router.js";
import { useResource } from "../../lib/resource.js";
import { useStore } from "../../lib/store.js";
import { streamPath, Watching } from "../../lib/streams.js";
import { Status } from "../../ui/icons.js";
import { Button, Copy, Facts, Problem } from "../../ui/parts.js";
import { contentOf } from "../../lib/text.js";
import { Text } from "../request/conversation.js";

export function Peek({ state, onClose }) {
  const [watching, watch] = useState(null);
  const request = useResource(streamPath(state, "/request"));
  useEffect(() => {
    const one = new Watching(state);
    watch(one);
    return () => one.stop();
  }, [state.id]);
  const last = request.data?.messages?.at(-1);
  return html`<aside class="peek card" aria-label="Peek at a request">
    <header><h2><${Status} status=${state.status} /></h2><${Button} onClick=${() => go(`/r/${state.id}`, state.tenant ? { tenant: state.tenant } : {})}>Open<//><${Button} kind="quiet" icon="close" title="Close (Esc)" aria-label="Close" onClick=${onClose} /></header>
    <div class="body stack">
      <${Facts} rows=${[
        ["Model", state.served_by ?? state.model],
        ["Id", html`<span class="mono">${state.id}</span> <${Copy} text=${state.id} title="Copy the id" />`],
        ["Total", duration(state.timings.total_ms)],
        ["Tokens", state.usage ? `${count(state.usage.prompt_tokens)} + ${count(state.usage.completion_tokens)}` : "–"],
        ["Cost", dollars(state.cost_usd)],
      ]} />
      <${Problem} error=${state.error} />
      ${last && html`<div><h3>${String(last.role)}</h3><${Text} text=${contentOf(last.content).text.slice(0, 4000)} form="raw" /></div>`}
      ${watching && html`<${Said} watching=${watching} />`}
    </div>
  </aside>`;
}

function Said({ watching }) {
  const { answer, state, problem } = useStore(watching.store);
  const text = answer.text;
  return html`<div><h3>Answer ${state === "reconnecting" && "(reconnecting)"}</h3>
    ${text ? html`<${Text} text=${text.slice(-8000)} form="markdown" growing=${!answer.ended} />` : html`<p class="soft">${problem ? problem.message : answer.ended ? "No text." : "Nothing yet."}</p>`}</div>`;
}
