// Plots: uPlot where there are axes, and small pictures of our own. Each has a table that says the same.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { zone } from "../lib/format.js";
import { theme } from "../lib/theme.js";
import { useStore } from "../lib/store.js";
import { Button } from "./parts.js";

const HEIGHT_PX = 132;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

/** A colour of ours as a canvas takes it: light-dark() is for style sheets alone. */
function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const SHADES = ["--accent", "--run", "--warn", "--bad", "--ok", "--soft"];

/**
 * `x`: Unix seconds. `series`: [{name, values, shade, bars}] with null where nothing is known. `show(value)` writes a number.
 * `stacked`: each on top of those before it. `onZoom(from_s, to_s)`: a span was drawn with the pointer.
 */
export function Plot({ label, x, series, show = String, stacked = false, onZoom, height = HEIGHT_PX }) {
  const box = useRef();
  const plot = useRef();
  const [asTable, turn] = useState(false);
  useStore(theme);
  const times = useStore(zone);
  const latest = useRef(); // a plot outlives the drawing that it was made in
  latest.current = { show, onZoom };
  const dark = css("color-scheme") + theme.value;
  const shape = series.map((one) => one.name + one.shade).join();
  useEffect(() => {
    if (asTable || !x.length) return undefined;
    const place = box.current; // the observer may be called once more when the page is another already
    const options = optionsOf({ series, stacked, latest, zooms: !!onZoom, height, width: place.clientWidth || 300 });
    plot.current = new globalThis.uPlot(options, dataOf(x, series, stacked), place);
    const watch = new ResizeObserver(() => place.clientWidth && plot.current?.setSize({ width: place.clientWidth, height }));
    watch.observe(place);
    return () => {
      watch.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [asTable, shape, dark, !x.length, stacked]);
  useEffect(() => plot.current?.setData(dataOf(x, series, stacked)), [x, series, times]);
  return html`<figure>
    <div class="legend">
      ${series.map((one, at) => (!stacked || one.values.some(Boolean)) && html`<span class="key"><i aria-hidden="true" ref=${(mark) => mark && (mark.style.background = `var(${one.shade ?? SHADES[at % SHADES.length]})`)}></i>${one.name}</span>`)}
      <${Button} icon=${asTable ? "usage" : "table"} kind="quiet tiny" aria-pressed=${asTable} title=${asTable ? "Show the plot" : "Show the numbers as a table"} aria-label=${`${label}: table`} onClick=${() => turn(!asTable)} />
    </div>
    ${asTable ? html`<${Twin} label=${label} x=${x} series=${series} show=${show} />` : html`<div class="plot" role="img" aria-label=${`${label}. The same as a table: the button above.`} ref=${box}></div>`}
  </figure>`;
}

function Twin({ label, x, series, show }) {
  const time = (s) => new Date(s * 1000).toISOString().slice(0, 16).replace("T", " ");
  return html`<div class="scroller twin" tabindex="0" role="region" aria-label=${label}><table>
    <thead><tr><th scope="col">UTC</th>${series.map((one) => html`<th scope="col" class="right">${one.name}</th>`)}</tr></thead>
    <tbody>${x.map((at, row) => html`<tr><td>${time(at)}</td>${series.map((one) => html`<td class="right">${one.values[row] === null ? "–" : show(one.values[row])}</td>`)}</tr>`).reverse()}</tbody>
  </table></div>`;
}

function dataOf(x, series, stacked) {
  if (!stacked) return [x, ...series.map((one) => one.values)];
  const sums = x.map(() => 0);
  // The last series is the top: it is drawn first, and the others over it.
  return [x, ...series.map((one) => one.values.map((value, at) => (sums[at] += value ?? 0))).reverse()];
}

function optionsOf({ series, stacked, latest, zooms, height, width }) {
  const soft = colour("--soft");
  const line = colour("--line");
  const axis = { stroke: soft, font: "11px system-ui, sans-serif", grid: { stroke: line, width: 1 }, ticks: { show: false } };
  const drawn = series.map((one, at) => {
    const stroke = colour(one.shade ?? SHADES[at % SHADES.length]);
    const bars = one.bars && globalThis.uPlot.paths.bars({ size: [0.8, 24], gap: 1 });
    return { label: one.name, stroke, width: bars ? 0 : 1.5, fill: bars ? stroke : undefined, paths: bars || undefined, points: { show: !bars && one.values.filter((value) => value !== null).length < 3, size: 5, fill: stroke }, spanGaps: true };
  });
  return {
    width,
    height,
    legend: { show: false },
    cursor: { drag: { x: zooms, y: false }, points: { size: 6 } },
    scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, space: 64, size: 24, values: (plot, values) => values.map((s) => clockOf(s, plot.scales.x.max - plot.scales.x.min)) },
      { ...axis, size: 46, space: 26, values: (_, values) => values.map((value) => latest.current.show(value)) },
    ],
    series: [{}, ...(stacked ? drawn.reverse() : drawn)],
    hooks: zooms
      ? {
          setSelect: [
            (plot) => {
              if (plot.select.width < 4) return;
              const from = plot.posToVal(plot.select.left, "x");
              const to = plot.posToVal(plot.select.left + plot.select.width, "x");
              plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              latest.current.onZoom(Math.floor(from), Math.ceil(to));
            },
          ],
        }
      : {},
  };
}

/** As short as the span allows: a time of day, or a date. */
function clockOf(at_s, span_s) {
  const options = span_s > 2 * 86_400 ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit", hour12: false, ...(span_s < 600 ? { second: "2-digit" } : {}) };
  return new Intl.DateTimeFormat("en-GB", { ...options, ...(zone.value === "utc" || span_s > 2 * 86_400 ? { timeZone: "UTC" } : {}) }).format(at_s * 1000);
}

/** `count` spans of `width_s` up to now: [{at, rows}], the oldest first. `at_s(row)` says when a row was. */
export function spans(rows, at_s, { width_s = 60, count = 60, now_s = Date.now() / 1000 } = {}) {
  const end = Math.ceil(now_s / width_s) * width_s;
  const found = Array.from({ length: count }, (_, at) => ({ at: end - (count - at) * width_s, rows: [] }));
  for (const row of rows) {
    const place = count - Math.ceil((end - at_s(row)) / width_s);
    if (place >= 0 && place < count) found[place].rows.push(row);
  }
  return found;
}

export function quantile(values, part) {
  if (!values.length) return null;
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
}
