// Five viewers of one answer, side by side: what `streamspool demo --browser` shows while the API is killed.
//
// Each is a connection of its own, as five people's would be. A browser has six to a server, so this page asks little else.
import { html, useEffect, useMemo } from "../lib/dom.js";
import { Answer } from "../lib/answer.js";
import { count, lastLine } from "../lib/format.js";
import { Link } from "../lib/router.js";
import { Following } from "../lib/sse.js";
import { onceAFrame, Store, useStore } from "../lib/store.js";
import { oneLine } from "../lib/text.js";
import { Card, Empty, Facts } from "../ui/parts.js";

const LATE_AT = 40; // chunks the first viewer has seen when the next ones join
const MIDDLE_AT = 70;
const WORDS = { waiting: "not there yet", connecting: "connecting", live: "live", reconnecting: "reconnecting", hidden: "asleep", ended: "has it all", failed: "failed" };

class Viewer {
  constructor(name, joins) {
    Object.assign(this, { name, joins, answer: new Answer(), state: "waiting", joined: false, reconnects: 0, gaps: 0, duplicates: 0, last: null, following: null });
  }

  join(id, tell, cursor = "") {
    if (this.joined) return;
    this.joined = true;
    if (cursor) this.last = cursor;
    this.following = new Following(`/v1/streams/${id}`, {
      event: (event) => {
        this.compare(event.id ?? "");
        const last = this.answer.take(event);
        tell();
        return last;
      },
      state: (name) => {
        if (name === "reconnecting" && this.state === "live") this.reconnects += 1;
        this.state = name;
        tell();
      },
    }, { cursor, line: false });
  }

  /** Positions are EPOCH-NUMBER, and each number follows the one before. */
  compare(position) {
    const [epoch, number] = position.split("-").map(Number);
    if (this.last && number) {
      const [before, at] = this.last.split("-").map(Number);
      if (epoch === before && number <= at) this.duplicates += 1;
      if (epoch === before && number > at + 1) this.gaps += 1;
    }
    if (number) this.last = position;
  }
}

/** The five, who join as the first one gets on; the last joins when the server is away. */
class Five {
  constructor(id) {
    this.id = id;
    this.turn = new Store(0);
    const draw = onceAFrame(() => this.turn.set(this.turn.value + 1));
    this.tell = () => {
      this.direct();
      draw();
    };
    this.viewers = [["live", "at the start"], ["twin", "at the start"], ["late", "late"], ["middle", "in the middle, for the rest"], ["after", "while the API is dead"]].map(([name, joins]) => new Viewer(name, joins));
    for (const viewer of this.viewers.slice(0, 2)) viewer.join(id, this.tell);
  }

  direct() {
    const [first, , late, middle, after] = this.viewers;
    const seen = first.answer.frames.length;
    if (seen >= LATE_AT || first.answer.ended) late.join(this.id, this.tell);
    if (!middle.joined && (seen >= MIDDLE_AT || first.answer.ended)) middle.join(this.id, this.tell, first.answer.ended ? "" : first.last);
    if (first.state === "reconnecting" || first.answer.ended) after.join(this.id, this.tell);
  }

  stop() {
    for (const viewer of this.viewers) viewer.following?.stop();
  }
}

export function Viewers({ id }) {
  const five = useMemo(() => new Five(id), [id]);
  useEffect(() => () => five.stop(), [five]);
  useStore(five.turn);
  const over = five.viewers.every((viewer) => viewer.answer.ended);
  const [first] = five.viewers;
  if (first.state === "failed") return html`<${Empty} title="This answer is not here"><p class="soft">Run <code>streamspool demo --browser</code> again.</p><//>`;
  return html`
    <div class="head"><h1>One answer, five viewers</h1><${Link} to=${`/r/${id}`} class="button">The request<//></div>
    <p class="soft" role="status">${over ? "The API was killed in the middle, and everyone has every word, once." : "Each is a connection of its own. The API is killed in the middle of it."}</p>
    <div class="five">${five.viewers.map((viewer) => html`<${Seat} key=${viewer.name} viewer=${viewer} whole=${first.answer.text} />`)}</div>`;
}

function Seat({ viewer, whole }) {
  const { answer, state } = viewer;
  const same = answer.ended && whole.endsWith(answer.text) && !viewer.gaps && !viewer.duplicates;
  return html`<${Card} title=${viewer.name} actions=${html`<span class=${state === "reconnecting" ? "warn" : ""}><i class="dot" data-state=${state}></i> ${WORDS[state]}</span>`}>
    <p class="soft">joins ${viewer.joins}</p>
    <p class="said"><bdi>${oneLine(lastLine(answer.text, 150)) || "…"}</bdi></p>
    <${Facts} rows=${[["Chunks", count(answer.frames.length)], ["Reconnects", viewer.reconnects], ["Gaps", viewer.gaps], ["Duplicates", viewer.duplicates], ["Whole", answer.ended ? (same ? "yes" : "no") : "–"]]} />
  <//>`;
}
