// The frames as they came over the wire, and the scrubber: the answer as it was after any of them.
import { html, useEffect, useMemo, useRef, useState } from "../../lib/dom.js";
import { bytes, count, duration } from "../../lib/format.js";
import { Answer } from "../../lib/answer.js";
import { useKeys } from "../../lib/keys.js";
import { setQuery, usePlace } from "../../lib/router.js";
import { oneLine } from "../../lib/text.js";
import { Button, Card, Copy, Curl, Switch } from "../../ui/parts.js";
import { Table } from "../../ui/table.js";
import { Text } from "./conversation.js";

const SLOWEST_MS = 200;
const TICK_MS = 40;
const SPEEDS = [["1", "1×"], ["4", "4×"], ["max", "max"]];

export function Events({ state, answer }) {
  const { hash } = usePlace();
  const frames = answer.frames;
  const asked = hash.startsWith("at=") ? frames.findIndex((frame) => frame.id === decodeURIComponent(hash.slice(3))) + 1 : 0;
  const [at, seek] = useState(null); // after so many frames; null: all there are
  const place = at ?? (asked || frames.length);
  const [speed, setSpeed] = useState("1");
  const own = useRef(hash);
  useEffect(() => {
    if (hash !== own.current) seek(null); // Back, or another link
    own.current = hash;
  }, [hash]);
  const shown = useMemo(() => Answer.upTo(frames, place), [place, frames.length]);
  const jump = (number) => {
    const to = Math.max(0, Math.min(frames.length, number));
    seek(to === frames.length ? null : to);
    own.current = to && to < frames.length ? `at=${frames[to - 1].id}` : "";
    setQuery({}, { replace: true, hash: own.current });
  };
  const [playing, play] = useReplay(frames, place, speed, state, seek, () => jump(frames.length));
  useKeys({ p: () => play(!playing) });
  const columns = [
    { title: "#", right: true, cell: (frame) => count(frame.number) },
    { title: "Position", cell: (frame) => html`<span class="mono">${frame.end ? "end" : frame.id || "–"}</span>` },
    { title: "At", right: true, cell: (frame) => duration(frame.at_ms) },
    { title: "Size", right: true, narrow: false, cell: (frame) => bytes(frame.data.length) },
    { title: "Event", narrow: false, cell: (frame) => frame.event || "message" },
    { title: "Data", fill: true, cell: (frame) => html`<bdi class="mono">${oneLine(frame.data.slice(0, 600))}</bdi>` },
  ];
  const rows = useMemo(() => frames.map((frame, index) => ({ ...frame, number: index + 1 + answer.dropped, index: index + 1 })), [frames.length]);
  return html`<div class="stack">
    <${Card} title="Replay" small=${`${count(place)} of ${count(frames.length)} frames`}>
      <div class="row scrub">
        <${Button} icon=${playing ? "pause" : "play"} title="Play, and pause (p)" onClick=${() => play(!playing)}>${playing ? "Pause" : "Play"}<//>
        <${Switch} label="Speed" value=${speed} options=${SPEEDS} onChange=${setSpeed} />
        <input class="grow" type="range" min="0" max=${frames.length} value=${place} aria-label="Position in the answer" aria-valuetext=${`after frame ${place} of ${frames.length}`} onInput=${(event) => jump(Number(event.target.value))} />
        <span class="mono soft">${place ? (frames[place - 1]?.end ? "end" : frames[place - 1]?.id) : "start"}</span>
      </div>
      <div class="replayed">${shown.list.map((choice) => html`<${Text} key=${choice.index} text=${choice.content || choice.reasoning} form="raw" />`)}${!shown.list.length && html`<p class="soft">Nothing had been said.</p>`}</div>
      <p class="soft">A log keeps no time for each chunk: the replay goes at the answer's own average.</p>
    <//>
    <${Card} flush title="Frames" small=${answer.dropped ? `the oldest ${count(answer.dropped)} are left out` : ""} actions=${html`<${Curl} path=${`/v1/streams/${state.id}`} live=${true} /><${Copy} text=${frames.map((frame) => `id: ${frame.id}\n${frame.event ? `event: ${frame.event}\n` : ""}data: ${frame.data}\n`).join("\n")} label="all" title="Copy all frames" />`}>
      <${Table} label="Frames" columns=${columns} rows=${rows} keyOf=${(row) => row.index} chosen=${place} onChoose=${jump} onOpen=${(row) => jump(row.index)} tall="52vh" />
    <//>
  </div>`;
}

/** Plays the frames on from where it is; [whether it plays, how to begin or stop]. */
function useReplay(frames, place, speed, state, seek, end) {
  const [playing, set] = useState(false);
  const held = useRef();
  held.current = { frames, place, speed, end };
  useEffect(() => {
    if (!playing) return undefined;
    const talk_ms = Math.max(0, (state.timings.generation_ms ?? 0) - (state.timings.first_chunk_ms ?? 0));
    const each_ms = Math.min(SLOWEST_MS, talk_ms / Math.max(1, frames.length)) || 20;
    let due = held.current.place >= frames.length ? 0 : held.current.place;
    let shown = null;
    const timer = setInterval(() => {
      const now = held.current;
      if (shown !== null && now.place !== shown) due = now.place; // it was dragged meanwhile
      due += now.speed === "max" ? now.frames.length / 25 : (TICK_MS * Number(now.speed)) / each_ms;
      if (due >= now.frames.length) {
        now.end(); // out of the address, too, where it began
        set(false);
      } else seek((shown = Math.floor(due)));
    }, TICK_MS);
    return () => clearInterval(timer);
  }, [playing]);
  return [playing, set];
}
