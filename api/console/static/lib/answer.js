// An answer as its events make it: the fold of chunks to text, reasoning and calls of tools, and the raw frames behind them.

/** Frames that are kept. Beyond it the oldest go, and their number is told. */
const MOST_FRAMES = 50_000;
const END = "9007199254740991-0";

const emptyChoice = (index) => ({ index, role: "assistant", content: "", reasoning: "", tools: [], finish: null });

export class Answer {
  constructor() {
    this.frames = [];
    this.dropped = 0;
    this.began_ms = 0;
    this.ended = false;
    this.error = null;
    this.usage = null;
    this.attempt = 1;
    this.choices = new Map();
  }

  /** Takes one event of GET /v1/streams/{id}. True: it was the last. */
  take(event, at_ms = performance.now()) {
    this.began_ms ||= at_ms;
    const frame = { id: event.id ?? "", event: event.event ?? "", data: event.data, at_ms: at_ms - this.began_ms, text: "", end: event.id === END };
    if (this.frames.length >= MOST_FRAMES) this.dropped += this.frames.splice(0, 1000).length;
    this.frames.push(frame);
    if (event.data === "[DONE]") {
      this.ended = true;
      return true;
    }
    this.fold(frame);
    return false;
  }

  fold(frame) {
    let told;
    try {
      told = JSON.parse(frame.data);
    } catch {
      return;
    }
    if (frame.event === "attempt") {
      this.attempt = told.attempt;
      this.choices = new Map(); // what was shown is void
      return;
    }
    if (told.error) this.error = told.error;
    if (told.usage) this.usage = told.usage;
    for (const choice of told.choices ?? []) frame.text += this.add(choice);
  }

  add({ index, delta = {}, finish_reason: finish }) {
    if (!this.choices.has(index)) this.choices.set(index, emptyChoice(index));
    const choice = this.choices.get(index);
    const content = typeof delta.content === "string" ? delta.content : "";
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    choice.content += content;
    if (typeof reasoning === "string") choice.reasoning += reasoning;
    if (typeof delta.refusal === "string") choice.content += delta.refusal;
    if (finish) choice.finish = finish;
    for (const call of delta.tool_calls ?? []) {
      const at = call.index ?? choice.tools.length;
      choice.tools[at] ??= { id: "", name: "", arguments: "" };
      const tool = choice.tools[at];
      if (call.id) tool.id = call.id;
      tool.name += call.function?.name ?? "";
      tool.arguments += call.function?.arguments ?? "";
    }
    return content || (typeof reasoning === "string" ? reasoning : "");
  }

  get list() {
    return [...this.choices.values()].sort((one, other) => one.index - other.index);
  }

  /** What is there of the first choice: its text, or what it thinks before it says something. */
  get text() {
    const first = this.list[0];
    return first ? first.content || first.reasoning : "";
  }

  /** The answer as it was after so many frames. */
  static upTo(frames, number) {
    const answer = new Answer();
    for (const frame of frames.slice(0, number)) if (frame.data !== "[DONE]") answer.fold({ ...frame, text: "" });
    return answer;
  }
}
