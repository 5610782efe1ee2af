// Text that others wrote, made safe to look at: control characters are shown, and none may turn the line around.

const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;
const BIDI = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;

/** Control characters as their pictures (U+2400…): an escape sequence is seen, and does nothing. */
export const visible = (text) => text.replace(CONTROL, (one) => (one === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + one.charCodeAt(0))));

/** For one line of a table: no colours of a terminal, no line ends, no overrides of the direction. */
export const oneLine = (text) => visible(text.replace(ANSI, "").replace(BIDI, "").replace(/\s+/g, " "));

/** A message's content as text, and what else is in it, by name. OpenAI's content is a text or a list of parts. */
export function contentOf(content) {
  if (typeof content === "string") return { text: content, others: [] };
  if (!Array.isArray(content)) return { text: content ? JSON.stringify(content) : "", others: [] };
  const text = content.filter((part) => typeof part?.text === "string").map((part) => part.text).join("\n");
  const others = content.filter((part) => typeof part?.text !== "string").map(describe);
  return { text, others };
}

function describe(part) {
  const name = String(part?.type ?? "part").replace(/_url$|^input_/g, "");
  const address = part?.image_url?.url ?? part?.image_url ?? "";
  if (typeof address === "string" && address.startsWith("data:")) {
    return `${name}, ${address.slice(5, address.indexOf(";"))}, about ${Math.round((address.length * 3) / 4096)} KiB`;
  }
  return address ? `${name} at ${String(address).slice(0, 120)}` : name;
}
