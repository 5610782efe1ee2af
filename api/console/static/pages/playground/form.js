// What the playground asks, as the address holds it: one text of JSON, so that a link or a reload shows the same form.
import { get } from "../../lib/api.js";
import { goLater } from "../../lib/router.js";
import { streamPath } from "../../lib/streams.js";

export const NEW = { models: ["fake/lorem?tokens=120&rate=40"], system: "", messages: [{ role: "user", content: "Tell me something about the sea." }], parameters: {}, session: "", ids: [] };
const LONGEST = 6000; // characters of an address that everything takes

export function toHash(form) {
  const kept = Object.fromEntries(Object.entries(form).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(NEW[name])));
  const text = encodeURIComponent(JSON.stringify(kept));
  return text === "%7B%7D" || text.length > LONGEST ? "" : text;
}

export function fromHash(hash) {
  try {
    const given = JSON.parse(decodeURIComponent(hash));
    return { ...NEW, ...Object.fromEntries(Object.entries(given).filter(([name, value]) => name in NEW && typeof value === typeof NEW[name])) };
  } catch {
    return NEW;
  }
}

/** The body for one of the models. Empty fields are left out. */
export function bodyOf(form, model) {
  const messages = [...(form.system ? [{ role: "system", content: form.system }] : []), ...form.messages.filter((message) => message.content || message.tool_calls)];
  return { model, messages, ...form.parameters, ...(form.session ? { session_id: form.session } : {}), background: true };
}

const OURS = ["messages", "model", "stream", "stream_options", "background", "session_id", "webhook", "store"];

/** Opens the playground with what a request was. */
export async function toPlayground(state) {
  const then = goLater();
  const body = await get(streamPath(state, "/request"));
  const [first, ...rest] = body.messages;
  const hasSystem = (first?.role === "system" || first?.role === "developer") && typeof first.content === "string";
  const form = {
    ...NEW,
    models: [body.model],
    system: hasSystem ? first.content : "",
    messages: hasSystem ? rest : body.messages,
    parameters: Object.fromEntries(Object.entries(body).filter(([name]) => !OURS.includes(name))),
  };
  kept = form;
  if (then("/playground", {}, { hash: toHash(form) }) === false) kept = null;
}

/** What was too long for an address, for the page that is opened next. */
let kept = null;
export function takeKept() {
  const form = kept;
  kept = null;
  return form;
}
