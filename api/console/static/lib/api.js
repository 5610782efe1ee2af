// The public routes of the server, as any program asks them. The console has no others.
import { Store } from "./store.js";

/** The prefix under which a proxy shows the server, "" mostly: what stands before this file's own path. */
export const root = new URL(import.meta.url).pathname.split("/console/assets/")[0];
export const origin = location.origin + root;

/** "yes" once a route has answered, "no" when one said 401: then the page asks for a key. */
export const signedIn = new Store("unknown");

let era = 0; // how often somebody has signed in or out here: an answer to the one before says nothing of the one now

/** Somebody has signed in ("yes") or out ("no"). */
export function signed(now) {
  era += 1;
  session.set(UNKNOWN);
  signedIn.set(now);
}

/** Whether the server answers at all, and since when it does not: {ok, since_ms, why}. */
export const contact = new Store({ ok: true, since_ms: 0, why: "" });

export class ApiError extends Error {
  constructor(status, error, headers) {
    super(error?.message || `The server answered with ${status}.`);
    this.status = status;
    this.code = error?.code || "";
    this.stream = error?.stream ?? null; // what is still known of an answer that is not kept any more
    this.headers = headers;
  }
}

/** The server did not answer. */
export class Away extends Error {
  constructor() {
    super("The server does not answer.");
    this.status = 0;
    this.code = "away";
  }
}

/** `path` with the queries that are not empty. Arrays are joined with commas. */
export function withQuery(path, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    const text = Array.isArray(value) ? value.join(",") : value;
    if (text !== undefined && text !== null && text !== "") search.set(name, text);
  }
  const text = search.toString();
  return text ? `${path}?${text}` : path;
}

/** The response, if it is one of success. Raises ApiError, Away, and AbortError where `signal` says so. */
export async function call(method, path, { body, headers = {}, signal } = {}) {
  let response;
  const asked = era;
  const isForm = body instanceof FormData;
  try {
    response = await fetch(root + path, {
      method,
      headers: { ...(body !== undefined && !isForm ? { "content-type": "application/json" } : {}), ...headers },
      body: body === undefined || isForm ? body : typeof body === "string" ? body : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    note(new Away());
    throw new Away();
  }
  if (response.ok) {
    note(null);
    if (asked === era) signedIn.set("yes");
    return response;
  }
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // a proxy's page, or nothing: the status says enough
  }
  const error = new ApiError(response.status, told, response.headers);
  if (response.status === 401 && asked === era) signedIn.set("no");
  note(response.status >= 502 ? error : null);
  throw error;
}

export const get = async (path, options) => (await call("GET", path, options)).json();
export const post = async (path, body, options) => (await call("POST", path, { ...options, body })).json();
export const remove = async (path, options) => (await call("DELETE", path, options)).json();

/** Notes whether the server could be reached. */
export function note(problem) {
  const now = contact.value;
  if (problem && now.ok) contact.set({ ok: false, since_ms: Date.now(), why: problem.message });
  else if (!problem && !now.ok) contact.set({ ok: true, since_ms: Date.now(), why: "" });
}

const quoted = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

/** The same call on a command line. The key is left for the reader to put in. */
export function asCurl(path, { method = "GET", body, headers = {}, live = false } = {}) {
  const parts = ["curl", live ? "-sN" : "-s"];
  if (method !== "GET" && !(method === "POST" && body)) parts.push("-X", method);
  parts.push(quoted(origin + path));
  if (body) parts.push("-H 'Content-Type: application/json'");
  for (const [name, value] of Object.entries(headers)) parts.push("-H", quoted(`${name}: ${value}`));
  if (session.value.keyed) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("-d", quoted(typeof body === "string" ? body : JSON.stringify(body)));
  return parts.join(" ");
}

/** Who is asking: {keyed, role, tenant, key_id}. `role` is null until it is known; `operates`: may see the workers. */
const UNKNOWN = { keyed: false, role: null, tenant: "", key_id: null, operates: false };
export const session = new Store(UNKNOWN);

/** Finds out who is asking. A server without keys is for whoever is on its machine. */
export async function learnSession() {
  const asked = era;
  try {
    const { keyless, role, tenant, key } = await get("/console/session");
    if (asked === era) session.set({ keyed: !keyless, role, tenant, key_id: key?.id ?? null, operates: keyless || role === "admin" });
  } catch {
    // without a key, or without a server: the page says so elsewhere
  }
}
