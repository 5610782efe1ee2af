// One shared answer, live or from the start, for people without a key: no menu, and nothing of anyone else.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { call, get, post, root } from "../lib/api.js";
import { Answer } from "../lib/answer.js";
import { Following } from "../lib/sse.js";
import { Store, useStore } from "../lib/store.js";
import { isRunning, useGeneration } from "../lib/streams.js";
import { Status } from "../ui/icons.js";
import { Action, Empty, Since, ask } from "../ui/parts.js";
import { Conversation } from "./request/conversation.js";

const KEY = "streamspool.share";
const WORDS = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting: the text so far stays", waiting: "In turns with other tabs", hidden: "Asleep", ended: "", failed: "Ended" };
const without = (path) => (path?.startsWith(root) ? path.slice(root.length) : path);

/** The token stands in the fragment, is exchanged once for a cookie, and is taken out of the address. */
async function open() {
  const token = decodeURIComponent(location.hash.slice(1)) || sessionStorage.getItem(KEY);
  if (!token) throw new Error("This link has no token: it ends with # and some letters. Ask for it again.");
  const opened = await post("/s/session", { token });
  sessionStorage.setItem(KEY, token); // a reload of this tab opens it again
  history.replaceState(null, "", location.pathname);
  return opened;
}

export function Share() {
  const [opened, setOpened] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    open().then(setOpened, setProblem);
    const other = () => location.hash.length > 1 && location.reload(); // another link, put into the address of this one
    addEventListener("hashchange", other);
    return () => removeEventListener("hashchange", other);
  }, []);
  if (problem) return html`<${Ended} message=${problem.message} />`;
  return opened ? html`<${Shown} opened=${opened} />` : html`<div class="skeleton"></div>`;
}

const Ended = ({ message }) => html`<${Empty} title="This link opens nothing, or not any more"><p class="soft">${message}</p><//>`;

function Shown({ opened }) {
  const store = useRef(new Store({ answer: new Answer(), state: "connecting", problem: null })).current;
  const [request, setRequest] = useState({ data: null, error: null });
  const path = without(opened.links.stream);
  const { state, reload } = useGeneration(path);
  useEffect(() => {
    const tell = (changes) => store.set({ ...store.value, ...changes });
    const following = new Following(path, {
      event: (event) => {
        const last = store.value.answer.take(event);
        tell({});
        if (last) reload();
        return last;
      },
      state: (name, problem = null) => tell({ state: name, problem }),
    });
    if (opened.links.request) get(without(opened.links.request)).then((data) => setRequest({ data, error: null }), () => {});
    return () => following.stop();
  }, []);
  const shown = useStore(store);
  if (shown.state === "failed") return html`<${Ended} message=${shown.problem?.message} />`;
  const running = state && isRunning(state);
  const cancel = async () => {
    if (await ask("Cancel this answer?", "It ends for everyone who watches it. The text so far is kept.", "Cancel it")) await call("POST", without(opened.links.cancel)).then(reload);
  };
  return html`
    <div class="head"><h1>${state && html`<${Status} status=${state.status} />`}<span class="cut">${state?.model ?? ""}</span></h1>
      <span class="soft" role="status">${WORDS[shown.state] && html`<i class="dot" data-state=${shown.state}></i> ${WORDS[shown.state]}`}${running && html` · <${Since} at=${state.created_at} />`}</span>
      ${running && opened.links.cancel && html`<${Action} kind="danger" icon="stop" run=${cancel}>Cancel<//>`}</div>
    ${state && html`<${Conversation} state=${state} answer=${shown.answer} request=${request} />`}
    <footer class="soft">A shared answer, shown by Streamspool.</footer>`;
}
