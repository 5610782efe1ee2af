// The frame: the menu, how things stand with the server, and what is said about all pages.
import { html, useEffect } from "../lib/dom.js";
import { call, contact, session, signed } from "../lib/api.js";
import { feed, look } from "../lib/feed.js";
import { setZone, zone } from "../lib/format.js";
import { SHORTCUTS } from "../lib/keys.js";
import { Link } from "../lib/router.js";
import { allTenants, setAllTenants } from "../lib/scope.js";
import { useStore } from "../lib/store.js";
import { nextTheme, theme } from "../lib/theme.js";
import { Icon } from "./icons.js";
import { Action, Away, Button, Dialog } from "./parts.js";

const MENU = [
  ["/", "live", "Live", "g l"],
  ["/requests", "requests", "Requests", "g r"],
  ["/playground", "playground", "Playground", "g y"],
  ["/batches", "batches", "Batches", "g b"],
  ["/sessions", "sessions", "Sessions", "g s"],
  ["/usage", "usage", "Usage", "g u"],
  ["/operations", "operations", "Operations", "g o"],
];
const WORDS = { live: "Live", polling: "Live, every 2 s", connecting: "Connecting", reconnecting: "Reconnecting", hidden: "Asleep", failed: "No feed" };

const isIn = (path, to) => (to === "/" ? path === "/" : path.startsWith(to) || (to === "/requests" && path.startsWith("/r/")));

export function Shell({ path, children }) {
  const every = useStore(allTenants);
  useEffect(() => look(every ? "*" : undefined), [every]);
  return html`
    <a class="skip" href="#main">To the page</a>
    <div class="shell">
      <header class="side">
        <${Link} to="/" class="brand"><${Brand} />Streamspool<//>
        <nav aria-label="Pages"><${Menu} path=${path} /></nav>
        <${Foot} every=${every} />
      </header>
      <main id="main" tabindex="-1"><${Away} />${children}</main>
    </div>`;
}

const Brand = () => html`<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7" fill="#0f766e" /><path d="M7 11c3-3 6-3 9 0s6 3 9 0M7 17c3-3 6-3 9 0s6 3 9 0M7 23c3-3 6-3 9 0" fill="none" stroke="#fff" stroke-width="2.4" stroke-linecap="round" /></svg>`;

function Menu({ path }) {
  const running = useStore(feed).running.length;
  return MENU.map(
    ([to, icon, name, keys]) => html`<${Link} to=${to} title=${`${name} (${keys})`} aria-current=${isIn(path, to) ? "page" : undefined}>
      <${Icon} name=${icon} /><span>${name}</span>${to === "/" && running > 0 && html`<span class="badge" aria-label=${`${running} running`}>${running}</span>`}
    <//>`,
  );
}

function Foot({ every }) {
  const { state } = useStore(feed);
  const who = useStore(session);
  const reached = useStore(contact).ok;
  const now = reached ? state : "reconnecting";
  const colours = useStore(theme);
  const times = useStore(zone);
  const icon = { system: "system", light: "sun", dark: "moon" }[colours];
  return html`<div class="foot">
    <div class="contact"><i class="dot" data-state=${now}></i><span class="cut" role="status">${WORDS[now] ?? now}</span></div>
    ${who.tenant && html`<div class="cut" title=${`Tenant ${who.tenant}, role ${who.role}`}>${every ? "all tenants" : who.tenant}${who.keyed && html` · ${who.role}`}</div>`}
    <div class="row">
      <${Button} kind="quiet" icon=${icon} title=${`Colours: ${colours} (t)`} aria-label=${`Colours: ${colours}`} onClick=${nextTheme} />
      <${Button} kind="quiet tiny" title="Times in local time or in UTC" onClick=${() => setZone(times === "utc" ? "local" : "utc")}>${times === "utc" ? "UTC" : "local"}<//>
      <${Link} to="/help" class="button quiet" title="Help (?)" aria-label="Help"><${Icon} name="help" /><//>
      ${who.keyed && who.role === "admin" && html`<${Button} kind="quiet tiny" aria-pressed=${every} title="Look at every tenant, or at your own" onClick=${() => setAllTenants(!every)}>all<//>`}
      ${who.keyed && html`<${Action} kind="quiet" icon="out" title="Sign out" aria-label="Sign out" run=${signOut} />`}
    </div>
  </div>`;
}

async function signOut() {
  await call("DELETE", "/console/session");
  signed("no");
}

export const HelpDialog = ({ onClose }) => html`<${Dialog} title="Shortcuts" onClose=${onClose}><${Shortcuts} /><//>`;

export const Shortcuts = () => html`<dl class="facts">${SHORTCUTS.map(([keys, what]) => html`<dt>${keys.split(/ +/).map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${what}</dd>`)}</dl>`;
