// What can be done with a request, wherever it is listed: cancel, ask again, share, try again in the playground.
import { html, useState } from "../lib/dom.js";
import { asCurl, post, remove, root } from "../lib/api.js";
import { absolute } from "../lib/format.js";
import { goLater } from "../lib/router.js";
import { useResource } from "../lib/resource.js";
import { streamPath } from "../lib/streams.js";
import { Action, ask, Button, Code, Dialog, Field, Problem, say } from "./parts.js";

export const HELLO = { model: "fake/lorem?tokens=400&rate=25", messages: [{ role: "user", content: "Say hello" }], background: true };

/** The first request, as a command and as a button. */
export const Start = () => html`
  <${Code} text=${asCurl("/v1/chat/completions", { method: "POST", body: HELLO })} />
  <${Action} kind="main" icon="play" run=${sayHello}>Say hello with fake/lorem<//>`;

export async function sayHello() {
  const then = goLater();
  const state = await post("/v1/chat/completions", HELLO);
  then(`/r/${state.id}`);
}

export async function cancelAsked(state) {
  if (!(await ask("Cancel this request?", "The provider is told to stop. The text so far is kept, and everyone who watches sees that it was cancelled.", "Cancel it"))) return;
  try {
    await post(streamPath(state, "/cancel"));
    say("Cancelled");
  } catch (error) {
    say(error.message);
  }
}

export async function retry(state) {
  const then = goLater();
  const again = await post(streamPath(state, "/retry"));
  then(`/r/${again.id}`);
}

export async function forget(state) {
  if (!(await ask("Delete this answer?", "It is ended if it runs, and nobody can read it any more.", "Delete it"))) return;
  const then = goLater();
  await remove(streamPath(state));
  say("Deleted");
  then("/requests");
}

const HOURS = [
  ["3600", "an hour"],
  ["86400", "a day"],
  ["604800", "a week"],
  ["2592000", "30 days"],
];

/** Makes links that show one answer to people without a key, lists those there are, and takes them back. */
export function ShareDialog({ state, onClose }) {
  const [mode, setMode] = useState("view");
  const [expires_in, setExpires] = useState("86400");
  const [parts, setParts] = useState(["answer"]);
  const [made, setMade] = useState(null);
  const path = streamPath(state, "/shares");
  const { data, error, reload } = useResource(path);
  const shares = data?.data ?? [];
  const make = async () => {
    const share = await post(path, { mode, expires_in: Number(expires_in), include: parts });
    setMade(linkOf(share));
    reload();
  };
  const toggle = (part) => setParts(parts.includes(part) ? parts.filter((one) => one !== part) : [...parts, part]);
  return html`<${Dialog} title="Share this answer" onClose=${onClose} actions=${html`<${Button} onClick=${onClose}>Close<//><${Action} kind="main" run=${make}>Make a link<//>`}>
    <div class="stack">
      <p class="soft">Whoever has the link sees this one answer, live and again later, and nothing else of this server.</p>
      <${Problem} error=${error} />
      <div class="grid2">
        <${Field} label="They may"><select class="input" value=${mode} onChange=${(event) => setMode(event.target.value)}><option value="view">watch</option><option value="control">watch, and cancel</option></select><//>
        <${Field} label="It ends after"><select class="input" value=${expires_in} onChange=${(event) => setExpires(event.target.value)}>${HOURS.map(([s, text]) => html`<option value=${s}>${text}</option>`)}</select><//>
      </div>
      <div class="row">${["prompt", "reasoning"].map((part) => html`<label class="row"><input type="checkbox" checked=${parts.includes(part)} onChange=${() => toggle(part)} /> with the ${part}</label>`)}</div>
      ${made && html`<div><h3>The link, told this once</h3><${Code} text=${made} /></div>`}
      ${shares.length > 0 && html`<div><h3>Links there are</h3><ul class="lines">${shares.map(
        (share) => html`<li key=${share.id}><span class="grow">${share.mode}, until ${absolute(share.expires_at)}</span><${Action} kind="quiet tiny danger" run=${() => remove(`${path}/${share.id}`).then(reload)}>revoke<//></li>`,
      )}</ul></div>`}
    </div><//>`;
}

/** The token stands in the fragment, which browsers send to no server. */
const linkOf = (share) => (share.url?.startsWith("http") ? share.url : location.origin + (share.url?.startsWith(root) ? share.url : root + (share.url ?? `/s/#${share.token}`)));

