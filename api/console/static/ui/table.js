// A table of any length: only the rows in view are in the document. It is a table for readers of the screen, too.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/dom.js";
import { useKeys } from "../lib/keys.js";

const ROW_PX = 34; // --row
const BEYOND = 12; // rows that are drawn above and below what is seen
const ALL_UP_TO = 80;

/**
 * `columns`: [{name, title, cell(row), right, fill, narrow: false to leave it out on a telephone, wide: true
 * to have it on large screens only}]. `chosen`: the key of the
 * row that is marked; `onChoose(key)` when another one is to be. `onOpen(row)`: Enter, or a click. `onPeek(row)`: Space.
 */
export function Table({ label, columns, rows, keyOf = (row) => row.id, chosen, onChoose, onOpen, onPeek, tall, foot, keys = true, checked, onCheck }) {
  const box = useRef();
  const [top, scroll] = useState(0);
  const [height, measure] = useState(600);
  const virtual = rows.length > ALL_UP_TO;
  useEffect(() => {
    const watch = new ResizeObserver(() => measure(box.current?.clientHeight || 600));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (tall) box.current.style.setProperty("--tall", tall);
  }, [tall]);
  const first = virtual ? Math.max(0, Math.floor(top / ROW_PX) - BEYOND) : 0;
  const last = virtual ? Math.min(rows.length, Math.ceil((top + height) / ROW_PX) + BEYOND) : rows.length;

  const at = rows.findIndex((row) => keyOf(row) === chosen);
  const move = (step) => {
    if (!rows.length) return false;
    const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + step));
    onChoose?.(keyOf(rows[next]));
    const y = next * ROW_PX;
    const view = box.current;
    if (y < view.scrollTop) view.scrollTop = y;
    else if (y + 2 * ROW_PX > view.scrollTop + view.clientHeight) view.scrollTop = y + 2 * ROW_PX - view.clientHeight;
  };
  const withRow = (act) => () => (act && at >= 0 ? act(rows[at]) : false);
  const own = keys && onChoose;
  useKeys(own ? { j: () => move(1), k: () => move(-1), Enter: withRow(onOpen), Space: withRow(onPeek) } : {});

  const spacer = (count) => count > 0 && html`<tr class="spacer" aria-hidden="true"><td colspan=${columns.length + (onCheck ? 1 : 0)} ref=${(cell) => cell && (cell.style.height = `${count * ROW_PX}px`)}></td></tr>`;
  const drawn = rows.slice(first, last).map((row, offset) => {
    const key = keyOf(row);
    return html`<tr key=${key} class=${onOpen ? "link" : ""} aria-rowindex=${virtual ? first + offset + 2 : undefined} aria-selected=${onChoose ? key === chosen : undefined}
      onClick=${onOpen && ((event) => event.target.closest("a, button, input, label") || getSelection().toString() || onOpen(row))}>
      ${onCheck && html`<td><input type="checkbox" aria-label=${`Choose ${key}`} checked=${checked.has(key)} onChange=${() => onCheck(key)} /></td>`}
      ${columns.map((column) => html`<td class=${classOf(column)}>${column.cell(row)}</td>`)}
    </tr>`;
  });
  return html`<div class="scroller" ref=${box} tabindex="0" role="region" aria-label=${label} onScroll=${(event) => scroll(event.currentTarget.scrollTop)}>
    <table aria-label=${label} aria-rowcount=${virtual ? rows.length + 1 : undefined}>
      <thead><tr>${onCheck && html`<th><span class="unseen">Choose</span></th>`}${columns.map((column) => html`<th scope="col" class=${classOf(column)}>${column.title}</th>`)}</tr></thead>
      <tbody>${spacer(first)}${drawn}${spacer(rows.length - last)}</tbody>
    </table>
    ${foot}
  </div>`;
}

const classOf = (column) => [column.right && "right", column.fill && "fill", column.narrow === false && "narrow-hidden", column.wide && "wide-only"].filter(Boolean).join(" ");
