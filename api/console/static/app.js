// The console begins here: which page an address means, and the frame around it.
import { html, render, useEffect, useState } from "./lib/dom.js";
import { learnSession, signedIn } from "./lib/api.js";
import { useKeys } from "./lib/keys.js";
import { go, usePlace } from "./lib/router.js";
import { useStore } from "./lib/store.js";
import { nextTheme } from "./lib/theme.js";
import { Question, Toasts, say } from "./ui/parts.js";
import { HelpDialog, Shell } from "./ui/shell.js";
import { Batch, Batches } from "./pages/batches.js";
import { Help } from "./pages/help.js";
import { Live } from "./pages/live.js";
import { Login } from "./pages/login.js";
import { Operations } from "./pages/operations.js";
import { Playground } from "./pages/playground.js";
import { Request } from "./pages/request.js";
import { Requests } from "./pages/requests.js";
import { Session, Sessions } from "./pages/sessions.js";
import { Share } from "./pages/share.js";
import { Usage } from "./pages/usage.js";
import { Viewers } from "./pages/viewers.js";

/** Pages by their path below /console; what a star stands for is given to the page as `id`. */
const PAGES = [
  ["/", Live, "Live"],
  ["/requests", Requests, "Requests"],
  ["/r/*", Request, "Request"],
  ["/playground", Playground, "Playground"],
  ["/batches", Batches, "Batches"],
  ["/batches/*", Batch, "Batch"],
  ["/sessions", Sessions, "Sessions"],
  ["/sessions/*", Session, "Session"],
  ["/usage", Usage, "Usage"],
  ["/operations", Operations, "Operations"],
  ["/help", Help, "Help"],
  ["/viewers/*", Viewers, "Five viewers"],
  ["/login", Login, "Sign in"],
  ["/s", Share, "Shared answer"],
  ["/s/*", Share, "Shared answer"],
];
const JUMPS = { l: "/", r: "/requests", y: "/playground", b: "/batches", s: "/sessions", u: "/usage", o: "/operations" };

function find(path) {
  for (const [pattern, Page, title] of PAGES) {
    if (pattern === path) return { Page, title, id: "" };
    if (pattern.endsWith("/*") && path.startsWith(pattern.slice(0, -1))) return { Page, title, id: decodeURIComponent(path.slice(pattern.length - 1)) };
  }
  return null;
}

const Nothing = () => html`<div class="empty"><h2>There is no such page</h2><p>The pages are in the menu; every request has one of its own under <code>/console/r/ID</code>.</p></div>`;

function App() {
  const { path } = usePlace();
  const signed = useStore(signedIn);
  const found = find(path);
  const [help, showHelp] = useState(false);
  const isShare = found?.Page === Share;
  useEffect(() => {
    document.title = `${found?.title ?? "Nothing here"} – Streamspool`;
  }, [path]);
  useEffect(() => {
    if (!isShare) learnSession();
  }, []);
  useKeys({
    ...Object.fromEntries(Object.entries(JUMPS).map(([key, to]) => [`g ${key}`, () => (isShare ? false : go(to))])),
    t: () => say(`Colours: ${nextTheme()}`),
    "?": () => showHelp(!help),
    "/": () => focusSearch(),
    Escape: () => (help ? showHelp(false) : false),
  });
  const Page = found?.Page ?? Nothing;
  const page = html`<${Page} key=${found?.id || path} id=${found?.id} />`;
  const alone = isShare || Page === Login || Page === Viewers; // without the menu, and the feed behind it
  const bare = alone || signed === "no";
  return html`
    ${bare ? html`<div class=${`plain ${Page === Viewers ? "wideplain" : ""}`}>${alone ? page : html`<${Login} />`}</div>` : html`<${Shell} path=${path}>${page}<//>`}
    ${help && html`<${HelpDialog} onClose=${() => showHelp(false)} />`}
    <${Question} /><${Toasts} />`;
}

function focusSearch() {
  const field = document.querySelector("[data-search]");
  if (!field) return false;
  field.focus();
  field.select?.();
}

render(html`<${App} />`, document.getElementById("app"));
