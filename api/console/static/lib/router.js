// Where the page is: path and query below /console, in the address, so that every view has a link and Back works.
import { html } from "./dom.js";
import { root } from "./api.js";
import { Store, useStore } from "./store.js";

const base = `${root}/console`;

function read() {
  const below = location.pathname.startsWith(base) ? base : root;
  const path = location.pathname.slice(below.length).replace(/\/+$/, "") || "/";
  return { path, query: Object.fromEntries(new URLSearchParams(location.search)), hash: location.hash.slice(1) };
}

export const place = new Store(read());
addEventListener("popstate", () => place.set(read()));

export const usePlace = () => useStore(place);

export function href(path, query = {}, hash = "") {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") search.set(name, value);
  const text = search.toString();
  return base + path + (text ? `?${text}` : "") + (hash ? `#${hash}` : "");
}

/** `replace` for what is no step of its own, as a filter that is being typed. */
export function go(path, query = {}, { replace = false, hash = "" } = {}) {
  const address = href(path, query, hash);
  if (address !== location.pathname + location.search + location.hash) history[replace ? "replaceState" : "pushState"](null, "", address);
  place.set(read());
  if (!replace) scrollTo(0, 0);
}

/** As `go`, at the end of what takes a while: nobody is taken away from where he has gone meanwhile. */
export function goLater() {
  const from = place.value.path;
  return (...where) => place.value.path === from && go(...where);
}

/** Changes some of the query; null takes a name out. `changes` may be made of the query as it is, which may not be drawn yet. */
export function setQuery(changes, options = {}) {
  const now = read();
  go(now.path, { ...now.query, ...(typeof changes === "function" ? changes(now.query) : changes) }, { hash: now.hash, ...options });
}

/** A link that a modified click opens in another tab, as any link. */
export function Link({ to, query, hash, children, ...rest }) {
  const follow = (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(to, query, { hash });
  };
  return html`<a ...${rest} href=${href(to, query, hash)} onClick=${follow}>${children}</a>`;
}
