// What a list shows as a file: CSV, JSONL, or the requests themselves as lines of a batch.
import { call, get, withQuery } from "../../lib/api.js";
import { say } from "../../ui/parts.js";

const MOST = 2000;
const FIELDS = "id status model served_by created_at ended_at attempts chunks usage_source cost_usd session_id batch_id".split(" ");

export async function exportRows(path, kind) {
  const rows = await allRows(path);
  if (kind === "csv") return save(toCsv(rows), "requests.csv", "text/csv");
  if (kind === "jsonl") return save(rows.map((row) => JSON.stringify(row)).join("\n") + "\n", "requests.jsonl", "application/jsonl");
  const lines = [];
  for (const row of rows) {
    try {
      const body = await (await call("GET", `/v1/streams/${row.id}/request`)).json();
      const { stream: _, stream_options: __, background: ___, webhook: ____, session_id: _____, ...kept } = body; // a line has none of these
      lines.push(JSON.stringify({ custom_id: row.id, method: "POST", url: "/v1/chat/completions", body: kept }));
    } catch {
      // its text is not kept any more
    }
  }
  return save(lines.join("\n") + "\n", "batch.jsonl", "application/jsonl");
}

async function allRows(path) {
  const rows = [];
  let after;
  do {
    const page = await get(after ? `${path}&${withQuery("", { after }).slice(1)}` : path);
    rows.push(...page.data);
    after = page.has_more ? page.last_id : null;
  } while (after && rows.length < MOST);
  say(after ? `The first ${rows.length}: narrow the list down for the others` : `${rows.length} requests`);
  return rows;
}

/** RFC 4180; a cell that a spreadsheet would take for a formula begins with an apostrophe. */
export function toCsv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = /^[=+\-@\t]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const more = ["prompt_tokens", "completion_tokens", "queued_ms", "first_chunk_ms", "total_ms", "error"];
  const lines = rows.map((row) => [...FIELDS.map((name) => row[name]), row.usage?.prompt_tokens, row.usage?.completion_tokens, row.timings.queued_ms, row.timings.first_chunk_ms, row.timings.total_ms, row.error?.code].map(cell).join(","));
  return [[...FIELDS, ...more].join(","), ...lines].join("\r\n") + "\r\n";
}

export function save(text, name, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  URL.revokeObjectURL(address);
}
