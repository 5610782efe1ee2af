// The console begins here: which page an address means, and the frame around it.
import { html, render, useEffect, useState } from "./lib/dom.js";
import { learnSession, signedIn } from "./lib/api.js";
import { useKeys } from "./lib/keys.js";
import { go, usePlace } from "./lib/router.js";
import { useStore } from "./lib/store.js";
import { nextTheme } from "./lib/theme.js";
import { Question, Toasts, say } from "./ui/parts.js";
import { HelpDialog, Shell } from "./ui/shell.js";
import { Live } from "./pages/live.js";

/** Pages by their path below /console: where they are, by which name, and their title. A star stands for the page's `id`. */
const PAGES = [
  ["/", async () => ({ Live }), "Live", "Live"],
  ["/requests", () => import("./pages/requests.js"), "Requests", "Requests"],
  ["/r/*", () => import("./pages/request.js"), "Request", "Request"],
  ["/playground", () => import("./pages/playground.js"), "Playground", "Playground"],
  ["/batches", () => import("./pages/batches.js"), "Batches", "Batches"],
  ["/batches/*", () => import("./pages/batches.js"), "Batch", "Batch"],
  ["/sessions", () => import("./pages/sessions.js"), "Sessions", "Sessions"],
  ["/sessions/*", () => import("./pages/sessions.js"), "Session", "Session"],
  ["/usage", () => import("./pages/usage.js"), "Usage", "Usage"],
  ["/operations", () => import("./pages/operations.js"), "Operations", "Operations"],
  ["/help", () => import("./pages/help.js"), "Help", "Help"],
  ["/viewers/*", () => import("./pages/viewers.js"), "Viewers", "Five viewers"],
  ["/login", () => import("./pages/login.js"), "Login", "Sign in"],
  ["/s", () => import("./pages/share.js"), "Share", "Shared answer"],
];
const ALONE = ["Share", "Login", "Viewers"]; // without the menu, and the feed behind it
const RETRY_MS = 1000;
const JUMPS = { l: "/", r: "/requests", y: "/playground", b: "/batches", s: "/sessions", u: "/usage", o: "/operations" };

function find(path) {
  for (const [pattern, load, name, title] of PAGES) {
    if (pattern === path) return { load, name, title, id: "" };
    if (pattern.endsWith("/*") && path.startsWith(pattern.slice(0, -1))) return { load, name, title, id: decodeURIComponent(path.slice(pattern.length - 1)) };
  }
  return null;
}

const loaded = new Map([["Live", Live]]);

/** A page, once it is there. It is asked for again where the server was away. */
function usePage(found) {
  const [, draw] = useState(0);
  const name = found?.name;
  useEffect(() => {
    let timer = 0;
    let stopped = false;
    const load = async () => {
      try {
        loaded.set(name, (await found.load())[name]);
        draw((count) => count + 1);
      } catch {
        if (!stopped) timer = setTimeout(load, RETRY_MS);
      }
    };
    if (name && !loaded.has(name)) load();
    return () => {
      stopped = true;
      clearTimeout(timer);
    };
  }, [name]);
  return name ? (loaded.get(name) ?? Coming) : Nothing;
}

/** The others, when there is nothing to do: they are there then, too, while the server is away. */
function loadTheRest() {
  for (const [, load] of PAGES) load().catch(() => {});
}

const Coming = () => html`<div class="head"></div><div class="skeleton" aria-label="The page is being loaded"></div>`;
const Nothing = () => html`<div class="empty"><h2>There is no such page</h2><p>The pages are in the menu; every request has one of its own under <code>/console/r/ID</code>.</p></div>`;

function App() {
  const { path } = usePlace();
  const signed = useStore(signedIn);
  const [help, showHelp] = useState(false);
  const found = find(path);
  const isAlone = ALONE.includes(found?.name);
  const asks = !isAlone && signed === "no";
  const Page = usePage(asks ? find("/login") : found);
  useEffect(() => {
    document.title = `${found?.title ?? "Nothing here"} – Streamspool`;
  }, [path]);
  useEffect(() => {
    if (found?.name === "Share") return;
    learnSession();
    setTimeout(loadTheRest, RETRY_MS);
  }, []);
  useKeys({
    ...Object.fromEntries(Object.entries(JUMPS).map(([key, to]) => [`g ${key}`, () => (isAlone ? false : go(to))])),
    t: () => say(`Colours: ${nextTheme()}`),
    "?": () => showHelp(!help),
    "/": () => focusSearch(),
    Escape: () => (help ? showHelp(false) : false),
  });
  const page = html`<${Page} key=${`${found?.name} ${found?.id}`} id=${found?.id} />`;
  return html`
    ${isAlone || asks ? html`<div class=${`plain ${found?.name === "Viewers" ? "wideplain" : ""}`}>${page}</div>` : html`<${Shell} path=${path}>${page}<//>`}
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
