// Shortcuts. A page names its own; the newest that knows a key has it, so a dialog or a peek panel comes before its page.
import { useLayoutEffect, useRef } from "./dom.js";
import { drawNow } from "./store.js";

const layers = [];
const PREFIX_MS = 2000;
let prefix = "";
let prefixAt = 0;

const isTyping = (target) => target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

const dialogIsOpen = () => !!document.querySelector("dialog[open]");

let asked = false; // whether the reader saw a dialog when he pressed the key

// Before any part of the page hears of it: it is for what stands there once all is drawn.
const see = (event) => {
  asked = dialogIsOpen();
  if (!isTyping(event.target) || event.key === "Escape") drawNow();
};
addEventListener("keydown", see, true);

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (dialogIsOpen()) {
    // It has its own: Escape closes it, Enter and Space press its buttons; but none that nobody has seen.
    if (!asked && event.key !== "Escape") event.preventDefault();
    return;
  }
  if (isTyping(event.target) && event.key !== "Escape") return;
  // Space and Enter belong to what has the focus, if that does something with them.
  if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button, a, summary, [role=tab]")) return;
  // By the keyboard's own clock: a busy page gets both keys late.
  const follows = prefix && event.timeStamp - prefixAt < PREFIX_MS;
  const key = follows ? `${prefix} ${event.key}` : event.key === " " ? "Space" : event.key;
  prefix = "";
  for (const layer of [...layers].reverse()) {
    const act = layer.current[key];
    if (act) {
      if (act(event) === false) continue;
      event.preventDefault();
      return;
    }
  }
  if (key === "g") {
    prefix = "g";
    prefixAt = event.timeStamp;
  }
});

/** `keys`: what to do by key, as "j", "Space", "Escape" or "g l". A function that returns false leaves the key to others. */
export function useKeys(keys) {
  const held = useRef(keys);
  held.current = keys;
  // Together with what is drawn: a key that is pressed at once finds what it is for.
  useLayoutEffect(() => {
    layers.push(held);
    return () => {
      layers.splice(layers.indexOf(held), 1);
    };
  }, []);
}

/** All there are, for the page of help: [keys, what they do]. */
export const SHORTCUTS = [
  ["/", "search, or filter what is listed"],
  ["j  k", "next and previous row"],
  ["Enter", "open the row"],
  ["Space", "peek at the row beside the list"],
  ["Esc", "close the peek panel or a dialog; else go back"],
  ["[  ]", "previous and next request, or tab"],
  ["g l", "Live"],
  ["g r", "Requests"],
  ["g y", "Playground"],
  ["g b", "Batches"],
  ["g s", "Sessions"],
  ["g u", "Usage"],
  ["g o", "Operations"],
  ["c", "copy the curl of this page, or of the row"],
  ["s", "share this request"],
  ["x", "cancel the request (it asks first)"],
  ["p", "pause and go on"],
  ["t", "light, dark, or as the system has it"],
  ["?", "this help"],
];
