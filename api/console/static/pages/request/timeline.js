// When what happened: a waterfall of the attempts, and how fast the chunks came.
import { html, useLayoutEffect, useRef } from "../../lib/dom.js";
import { absolute, count, duration } from "../../lib/format.js";
import { isRunning } from "../../lib/streams.js";
import { Card, Facts, useNow } from "../../ui/parts.js";

const GAP_MS = 2000;

export function Timeline({ state, answer }) {
  const now = useNow();
  const total = state.timings.total_ms ?? Math.max(1, now - state.created_at * 1000);
  const rows = rowsOf(state, total);
  return html`<div class="stack">
    <${Card} title="What happened" small=${`${duration(total)} in all`} curl=${`/v1/streams/${state.id}`}>
      <div class="waterfall">
        <div class="scale" aria-hidden="true">${[0, 0.25, 0.5, 0.75, 1].map((part) => html`<span>${duration(total * part)}</span>`)}</div>
        <table aria-label="Waterfall of the request"><colgroup><col /><col /><col /></colgroup><thead class="unseen"><tr><th scope="col">What</th><th scope="col">When</th><th scope="col">How long</th></tr></thead>
        <tbody>${rows.map((row) => html`<${Bar} key=${row.name} ...${row} total=${total} />`)}</tbody></table>
      </div>
    <//>
    <div class="grid2">
      <${Rates} answer=${answer} state=${state} />
      <${Card} title="Times"><${Facts} rows=${[
        ["Accepted", absolute(state.created_at)],
        ["First attempt", absolute(state.started_at)],
        ["Ended", absolute(state.ended_at)],
        ["Chunks", count(state.chunks)],
        ["Asked again before the first chunk", count(state.retries)],
        ["Sealed by", state.sealed_by],
      ]} /><//>
    </div>
  </div>`;
}

/** [{name, from_ms, to_ms, kind, note}], of what the state tells. */
function rowsOf(state, total) {
  const { queued_ms, first_chunk_ms, generation_ms } = state.timings;
  const running = isRunning(state);
  const rows = [{ name: "Waited for a worker", from_ms: 0, to_ms: queued_ms ?? total, kind: "wait", note: queued_ms !== null ? "" : running ? "still waits" : "it never began" }];
  if (queued_ms === null) return rows;
  // Of an attempt that was replaced only its reason is kept; together they took what the last one did not.
  const own_ms = generation_ms ?? (running ? null : 0);
  const begin = state.attempts > 1 && own_ms !== null ? Math.max(queued_ms, total - own_ms) : queued_ms;
  state.interrupted.forEach((why, at, all) => {
    const width = (begin - queued_ms) / all.length;
    rows.push({ name: `Attempt ${at + 1}`, from_ms: queued_ms + at * width, to_ms: queued_ms + (at + 1) * width, kind: "bad", note: why ?? "interrupted" });
  });
  const model = state.served_by ?? state.model;
  for (const one of state.refused) rows.push({ name: one.model, from_ms: begin, to_ms: begin + (first_chunk_ms ?? 0), kind: "bad", note: `refused: ${[one.status, one.code].filter(Boolean).join(" ")}` });
  const spoke = first_chunk_ms === null ? null : begin + first_chunk_ms;
  const again = state.retries ? `, asked again ${state.retries} times` : "";
  rows.push({ name: `Attempt ${Math.max(1, state.attempts)}, first chunk`, from_ms: begin, to_ms: spoke ?? total, kind: "first", note: `${model}${again}` });
  if (spoke !== null) rows.push({ name: "Answer", from_ms: spoke, to_ms: total, kind: running ? "run" : state.status === "failed" ? "bad" : "done", note: `${count(state.chunks)} chunks` });
  if (!running) rows.push({ name: `Settled: ${state.status}`, from_ms: total, to_ms: total, kind: "end", note: state.error?.code ?? state.finish_reasons.filter(Boolean).join(", ") });
  if (state.webhook) rows.push({ name: "Webhook", from_ms: total, to_ms: total, kind: "end", note: state.webhook.status ?? "" });
  return rows;
}

function Bar({ name, from_ms, to_ms, kind, note, total }) {
  const bar = useRef();
  useLayoutEffect(() => {
    bar.current.style.left = `${Math.min(99.5, (100 * from_ms) / total)}%`;
    bar.current.style.width = `${Math.max(0.4, (100 * Math.min(to_ms - from_ms, total - from_ms)) / total)}%`;
  });
  return html`<tr><th scope="row">${name}<span class="soft cut"> ${note}</span></th>
    <td class="lane"><i class=${`span ${kind}`} ref=${bar} title=${`${name}: from ${duration(from_ms)} to ${duration(to_ms)}`}></i></td>
    <td class="right">${duration(to_ms - from_ms)}</td></tr>`;
}

/** Chunks by the time they reached this page: a log has no times of its chunks, so what was replayed shows as one block. */
function Rates({ answer, state }) {
  const frames = answer.frames.filter((frame) => frame.text);
  const span = frames.length ? frames[frames.length - 1].at_ms : 0;
  const gaps = frames.filter((frame, at) => at && frame.at_ms - frames[at - 1].at_ms > GAP_MS).length;
  const SLICES = 60;
  const counts = Array.from({ length: SLICES }, () => 0);
  for (const frame of frames) counts[Math.min(SLICES - 1, Math.floor((frame.at_ms / Math.max(1, span)) * SLICES))] += 1;
  const most = Math.max(1, ...counts);
  const average = state.timings.generation_ms && state.chunks ? (1000 * state.chunks) / Math.max(1, state.timings.generation_ms - (state.timings.first_chunk_ms ?? 0)) : null;
  return html`<${Card} title="Chunks a second" small=${average === null ? "" : `${average.toFixed(1)} on average`}>
    ${span > 1000
      ? html`<svg class="rates" viewBox="0 0 ${SLICES * 4} 60" preserveAspectRatio="none" role="img" aria-label=${`Chunks as they reached this page in ${duration(span)}; ${gaps} gaps over 2 s`}>
          ${counts.map((number, at) => html`<rect x=${at * 4} y=${60 - (58 * number) / most} width="3" height=${(58 * number) / most} />`)}</svg>
          <p class="soft">As they reached this page, in ${duration(span)}. ${gaps ? html`<span class="warn">${gaps} gaps over 2 s.</span>` : "No gap over 2 s."}</p>`
      : !frames.length && state.ended_at
        ? html`<p class="soft">${count(state.chunks)} chunks, whose text is not here.</p>`
        : html`<p class="soft">${count(frames.length)} chunks came at once: they were there already. A log keeps their order, and no time for each.</p>`}
  <//>`;
}
