// Line icons, drawn here: 16 by 16, one stroke.
import { html } from "../lib/dom.js";

const PATHS = {
  live: "M1.5 8h3l2-5 3 10 2-5h3",
  requests: "M2.5 4h11M2.5 8h11M2.5 12h7",
  playground: "M5 3l7 5-7 5z",
  batches: "M2.5 5.5l5.5-3 5.5 3-5.5 3zM2.5 8.5l5.5 3 5.5-3M2.5 11l5.5 3 5.5-3",
  sessions: "M2.5 3.5h11v7h-6l-3 2.5v-2.5h-2z",
  usage: "M3 13.5V8.5M8 13.5v-11M13 13.5V6",
  operations: "M8 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM8 1.5v2M8 12.5v2M1.5 8h2M12.5 8h2M3.4 3.4l1.4 1.4M11.2 11.2l1.4 1.4M12.6 3.4l-1.4 1.4M4.8 11.2l-1.4 1.4",
  help: "M6 6a2 2 0 1 1 3 1.7c-.7.4-1 .8-1 1.5M8 11.6v.1M8 14.5a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13z",
  search: "M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.5 10.5l3 3",
  copy: "M5.5 5.5h8v8h-8zM3 10.5h-.5v-8h8V3",
  share: "M8 10V2M5 4.5L8 2l3 2.5M3 8.5v5h10v-5",
  again: "M13 8a5 5 0 1 1-1.5-3.6M13 2v3h-3",
  stop: "M4 4h8v8H4z",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3l7.5 5L5 13z",
  close: "M4 4l8 8M12 4l-8 8",
  back: "M10 3L5 8l5 5",
  next: "M6 3l5 5-5 5",
  warn: "M8 2l6.5 11.5h-13zM8 6.5v3M8 11.6v.1",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM8 1v1.5M8 13.500v1.5M1 8h1.500M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1",
  moon: "M13.5 9.500A6 6 0 0 1 6.5 2.500a6 6 0 1 0 7 7z",
  system: "M2 3h12v8H2zM6 14h4",
  download: "M8 2v8M5 7.500L8 10.500l3-3M3 13.500h10",
  eye: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
  plus: "M8 3v10M3 8h10",
  bin: "M3 4.500h10M6 4.500V3h4v1.500M4.5 4.500l.5 9h6l.5-9",
  out: "M6 3H3v10h3M7 8h7M11 5l3 3-3 3",
  table: "M2.5 3h11v10h-11zM2.5 6.500h11M6.5 6.500V13",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** Each status has a shape of its own: colour alone tells nothing to many. */
const SHAPES = {
  queued: html`<circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="2 1.5" />`,
  in_progress: html`<g class="turning"><circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-opacity=".3" stroke-width="2" /><path d="M6 1.500A4.5 4.5 0 0 1 10.5 6" fill="none" stroke="currentColor" stroke-width="2" /></g>`,
  completed: html`<path d="M1.5 6.500l3 3 6-7" fill="none" stroke="currentColor" stroke-width="1.8" />`,
  incomplete: html`<circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5" /><path d="M6 1.500v9A4.5 4.5 0 0 1 6 1.500z" fill="currentColor" />`,
  failed: html`<path d="M2 2l8 8M10 2l-8 8" fill="none" stroke="currentColor" stroke-width="2" />`,
  cancelled: html`<circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5" /><path d="M3 9l6-6" stroke="currentColor" stroke-width="1.5" />`,
};
const LIKE = { validating: "in_progress", finalizing: "in_progress", cancelling: "cancelled", expired: "incomplete", active: "completed", ok: "completed", revoked: "failed", draining: "incomplete", resting: "incomplete" };
const WORDS = { in_progress: "running", queued: "waiting" };

export const Status = ({ status, quiet = false }) => html`
  <span class="status" data-status=${status}>
    <svg viewBox="0 0 12 12" role="img" aria-label=${WORDS[status] ?? status}>${SHAPES[LIKE[status] ?? status] ?? SHAPES.queued}</svg>
    ${!quiet && (WORDS[status] ?? status)}
  </span>`;
