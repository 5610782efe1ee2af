// Numbers, times and sizes as people read them. Each takes null for what is not known.
import { Store } from "./store.js";

const NONE = "–";
const number = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? NONE : number.format(value));
export const compact = (value) => (value === null || value === undefined ? NONE : value < 10_000 ? number.format(value) : short.format(value));

/** 1234 → "1.2 s"; up to days. */
export function duration(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 1) return "0 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

export function dollars(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "$0";
  if (value < 0.01) return `$${value.toPrecision(2)}`;
  return `$${value.toFixed(value < 100 ? 2 : 0)}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
  }
  return `${value} B`;
}

/** Local time, or UTC: the reader's choice. */
export const zone = new Store(localStorage.getItem("streamspool.zone") === "utc" ? "utc" : "local");

export function setZone(name) {
  localStorage.setItem("streamspool.zone", name);
  zone.set(name);
}

/** Of Unix seconds, to the second. */
export function absolute(at_s) {
  if (!at_s) return NONE;
  const options = { dateStyle: "medium", timeStyle: "medium", hour12: false, ...(zone.value === "utc" ? { timeZone: "UTC" } : {}) };
  return new Intl.DateTimeFormat("en-GB", options).format(at_s * 1000) + (zone.value === "utc" ? " UTC" : "");
}

/** "12 s ago". */
export function ago(at_s, now_ms = Date.now()) {
  if (!at_s) return NONE;
  const s = Math.max(0, Math.floor(now_ms / 1000 - at_s));
  if (s < 1) return "now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86_400)} d ago`;
}

/** The last line of a text that has something in it, at most so many characters of its end. */
export function lastLine(text, most = 160) {
  const end = text.slice(-4 * most).trimEnd();
  const line = end.slice(end.lastIndexOf("\n") + 1);
  return line.length > most ? `…${line.slice(-most)}` : line;
}

/** "chatcmpl-6b90ffda…" → "6b90ffda": ids differ at their beginning, which the prefix hides. */
export const shortId = (id) => id.slice(id.indexOf("-") + 1, id.indexOf("-") + 9);
