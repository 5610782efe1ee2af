// The small parts that all pages share.
import { html, useLayoutEffect, useRef, useState } from "../lib/dom.js";
import { asCurl, contact } from "../lib/api.js";
import { absolute, ago, duration, zone } from "../lib/format.js";
import { place } from "../lib/router.js";
import { drawNow, Store, useStore } from "../lib/store.js";
import { Icon } from "./icons.js";

// ---- the time, once for the whole page

const clock = new Store(Date.now());
setInterval(() => document.hidden || clock.set(Date.now()), 1000);
document.addEventListener("visibilitychange", () => document.hidden || clock.set(Date.now()));

export const useNow = () => useStore(clock);

export function Ago({ at }) {
  const now = useNow();
  useStore(zone);
  if (!at) return "–";
  return html`<time dateTime=${new Date(at * 1000).toISOString()} title=${absolute(at)}>${ago(at, now)}</time>`;
}

/** How long something has been going on. */
export function Since({ at }) {
  return duration(Math.max(0, Math.floor(useNow() / 1000) - at) * 1000);
}

// ---- short messages

const toasts = new Store([]);
const SHOWN_MS = 4000;
let toastNumber = 0;

export function say(text) {
  const toast = { text, key: ++toastNumber };
  toasts.update((shown) => [...shown.slice(-2), toast]);
  setTimeout(() => toasts.update((shown) => shown.filter((one) => one !== toast)), SHOWN_MS);
}

export const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">${useStore(toasts).map((toast) => html`<div class="toast" key=${toast.key}>${toast.text}</div>`)}</div>`;

// ---- buttons

export async function copyText(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
    say(what);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy"); // without https there is no clipboard API but on loopback
    area.remove();
    say(done ? what : "This browser does not let the page copy.");
  }
}

export const Button = ({ icon, kind = "", children, ...rest }) => html`
  <button type="button" class=${`button ${kind}`} ...${rest}>${icon && html`<${Icon} name=${icon} />`}${children}</button>`;

export const Copy = ({ text, label = "", title = "Copy", kind = "quiet tiny" }) => html`
  <${Button} icon="copy" kind=${kind} title=${title} aria-label=${label ? undefined : title} onClick=${(event) => (event.stopPropagation(), copyText(text))}>${label}<//>`;

/** Every number has the call that it comes from. */
export const Curl = ({ path, label = "curl", ...options }) => {
  const text = asCurl(path, options);
  return html`<button type="button" class="button quiet tiny curl" title=${`Copy: ${text}`} aria-label=${`Copy as curl: ${path}`} onClick=${() => copyText(text, "curl copied")}>${label}</button>`;
};

export function Switch({ label, value, options, onChange }) {
  return html`<div class="switch" role="group" aria-label=${label}>
    ${options.map(([name, text]) => html`<button type="button" aria-pressed=${value === name} onClick=${() => onChange(name)}>${text}</button>`)}
  </div>`;
}

export function Tabs({ label, value, options, onChange }) {
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = options.map(([name]) => name);
    onChange(names[(names.indexOf(value) + step + names.length) % names.length]);
    requestAnimationFrame(() => event.target.parentElement?.querySelector('[aria-selected="true"]')?.focus());
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${move}>
    ${options.map(
      ([name, text, number]) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-selected=${value === name} tabIndex=${value === name ? 0 : -1} onClick=${() => onChange(name)}>
        ${text}${number !== undefined && number !== null && html`<span class="count">${number}</span>`}
      </button>`,
    )}
  </div>`;
}

/**
 * A field that is read when it is left, or at Enter: `take(text)`. What is being typed stays until then, whatever draws the page
 * meanwhile. Where `take` raises, the text stays, with what is wrong with it, until it is mended or `value` becomes another.
 */
export function Typed({ as = "input", value, take, ...rest }) {
  const [typed, type] = useState(null);
  const [wrong, tell] = useState("");
  const field = useRef();
  const isOdd = () => field.current.validity.badInput; // a number's: its text is told as none, so nothing seems to change
  const leave = () => {
    const text = field.current.value;
    let problem = "";
    try {
      if (isOdd()) throw new Error("This is no number.");
      if (text !== value) take(text);
    } catch (error) {
      problem = error.message;
    }
    type(problem ? text : null);
    tell(problem);
    drawNow(); // what stands in the address is drawn a frame later: until then the field would show the value before
  };
  useLayoutEffect(() => {
    if (document.activeElement === field.current) return;
    type(null);
    tell("");
  }, [value]);
  const atEnter = (event) => event.key === "Enter" && (as === "input" || event.ctrlKey || event.metaKey) && leave();
  return html`<${as} class="input" ...${rest} ref=${field} value=${typed ?? value} aria-invalid=${wrong ? "true" : undefined} onInput=${() => type(field.current.value)} onChange=${leave} onBlur=${() => isOdd() && leave()} onKeyDown=${atEnter} />
    ${wrong && html`<p class="bad" role="alert">${wrong}</p>`}`;
}

export const Field = ({ label, hint, children }) => html`<label class="field"><span title=${hint}>${label}</span>${children}</label>`;

// ---- states of a part: nothing there, something wrong

export const Code = ({ text }) => html`<div class="withcopy"><pre class="code" tabindex="0">${text}</pre><${Copy} text=${text} title="Copy this command" /></div>`;

export const Empty = ({ title, children, code }) => html`
  <div class="empty"><h2>${title}</h2>${children}${code && html`<${Code} text=${code} />`}</div>`;

/** What went wrong, since when what is shown is old, and what can be done. */
export function Problem({ error, at_ms = 0, reload }) {
  useNow();
  if (!error) return null;
  return html`<div class="problem" role="alert">
    <${Icon} name="warn" />
    <div class="grow"><div>${error.message}</div>
      <div class="soft">${[error.status ? `${error.status} ${error.code}` : "", at_ms ? `What is shown is of ${ago(at_ms / 1000)}.` : ""].filter(Boolean).join(" · ")}</div>
    </div>
    ${reload && html`<${Button} onClick=${reload}>Try again<//>`}
  </div>`;
}

export function Away() {
  const now = useStore(contact);
  useNow();
  if (now.ok) return null;
  return html`<div class="away" role="status"><${Icon} name="warn" /><span><b>Reconnecting.</b> ${now.why} What you see is of ${ago(now.since_ms / 1000)}; it goes on by itself.</span></div>`;
}

// ---- numbers

export const Tile = ({ label, value, unit, note, tone = "", curl, children }) => html`
  <div class="tile">
    <div class="label">${label}</div>
    <div class=${`value ${tone}`}>${value}${unit && html` <small>${unit}</small>`}</div>
    <div class="note cut">${note}</div>
    ${children}
    ${curl && html`<${Curl} path=${curl} />`}
  </div>`;

export const Card = ({ title, small, actions, curl, children, flush = false, ...rest }) => html`
  <section class="card" ...${rest}>
    <header><h2>${title}${small && html`<small>${small}</small>`}</h2>${curl && html`<${Curl} path=${curl} />`}${actions}</header>
    ${flush ? children : html`<div class="body">${children}</div>`}
  </section>`;

export const Facts = ({ rows }) => html`<dl class="facts">${rows.filter(Boolean).map(([name, value]) => html`<dt>${name}</dt><dd>${value ?? "–"}</dd>`)}</dl>`;

/** How full something is, in colours and in words. */
export function Bar({ value, most, label }) {
  const part = most ? Math.min(1, value / most) : 0;
  const set = useRef();
  useLayoutEffect(() => set.current?.style.setProperty("width", `${part * 100}%`));
  return html`<div class="bar" role="meter" aria-label=${label} aria-valuenow=${value} aria-valuemin="0" aria-valuemax=${most}><i ref=${set} class=${part >= 1 ? "bad" : part >= 0.8 ? "warn" : ""}></i></div>`;
}

// ---- dialogs

export function Dialog({ title, onClose, children, actions }) {
  const box = useRef();
  const over = useRef(false);
  useLayoutEffect(() => {
    const dialog = box.current;
    const before = document.activeElement;
    dialog.showModal();
    return () => {
      over.current = true; // that it closes now is no news
      dialog.close(); // what is behind an open one takes no focus
      before?.focus?.(); // the focus goes back to where it was
    };
  }, []);
  return html`<dialog ref=${box} aria-label=${title} onClose=${() => over.current || onClose()} onClick=${(event) => event.target === box.current && box.current.close()}>
    <h2>${title}</h2>${children}
    <footer>${actions ?? html`<${Button} onClick=${onClose}>Close<//>`}</footer>
  </dialog>`;
}

const question = new Store(null);
let questions = 0;

/** Asks before something that cannot be taken back; true if the answer is yes. Another question, or another page, answers no. */
export const ask = (title, text, yes) =>
  new Promise((resolve) => {
    question.value?.resolve(false);
    question.set({ title, text, yes, resolve, key: ++questions, path: place.value.path });
  });

function answerTo(asked, value) {
  asked.resolve(value);
  if (question.value === asked) question.set(null);
}

place.listen(({ path }) => question.value && path !== question.value.path && answerTo(question.value, false));

export function Question() {
  const asked = useStore(question);
  if (!asked) return null;
  const answer = (value) => answerTo(asked, value);
  return html`<${Dialog} key=${asked.key} title=${asked.title} onClose=${() => answer(false)}
    actions=${html`<${Button} onClick=${() => answer(false)}>No, leave it<//><${Button} kind="main" autofocus onClick=${() => answer(true)}>${asked.yes}<//>`}>
    <p>${asked.text}</p><//>`;
}

/** Something that is not begun again before it is over, and says what went wrong: [whether it goes on, how to begin]. */
export function useAction(run) {
  const [busy, wait] = useState(false);
  const going = useRef(false);
  const act = async () => {
    if (going.current) return;
    going.current = true;
    wait(true);
    try {
      await run();
    } catch (error) {
      say(error.message);
    }
    going.current = false;
    wait(false);
  };
  return [busy, act];
}

/** A button that waits for what it does. */
export function Action({ run, children, ...rest }) {
  const [busy, act] = useAction(run);
  return html`<${Button} ...${rest} disabled=${busy || rest.disabled} onClick=${(event) => (event.stopPropagation(), act())}>${children}<//>`;
}
