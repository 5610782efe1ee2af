// Read an answer to its end, however often the connection breaks, with nothing but fetch.
//
//     node examples/resume.mjs
//
// Each event has an id. The last one that was read goes back as Last-Event-ID, and the stream goes on behind it.

const base = process.env.STREAMSPOOL_URL ?? "http://127.0.0.1:8000";
const headers = { authorization: `Bearer ${process.env.STREAMSPOOL_API_KEY ?? "any"}` };

/** The events of a response: {id, event, data}, each once its blank line is there. */
async function* events(response) {
  let unread = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (unread + text).split("\n\n");
    unread = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split("\n")) {
        const [, field, value] = line.match(/^(\w+): ?(.*)$/) ?? []; // a keep-alive has no field name
        if (field) event[field] = value;
      }
      yield event;
    }
  }
}

/** Asks with POST the first time, and after that reads on with GET. */
function open(request, id, position) {
  if (id) {
    return fetch(`${base}/v1/streams/${id}`, {
      headers: position ? { ...headers, "last-event-id": position } : headers,
    });
  }
  return fetch(`${base}/v1/chat/completions`, {
    method: "POST",
    headers: { ...headers, "content-type": "application/json", "x-stream-ids": "1" },
    body: JSON.stringify({ ...request, stream: true }),
  });
}

async function ask(request) {
  let id, position, text = "", connections = 0;
  for (;;) {
    try {
      connections += 1;
      const response = await open(request, id, position);
      if (response.status === 204) return { text, connections }; // nothing is left
      if (id && response.status >= 500) throw new TypeError("the server is not back yet");
      if (!response.ok) throw new Error((await response.json()).error.message);
      id ??= response.headers.get("x-stream-id");
      for await (const event of events(response)) {
        position = event.id ?? position;
        if (event.data === "[DONE]") return { text, connections };
        if (event.event === "attempt") {
          text = ""; // a new attempt begins: the text so far is void
          continue;
        }
        const chunk = JSON.parse(event.data);
        if (chunk.error) throw new Error(chunk.error.message);
        text += chunk.choices[0]?.delta?.content ?? "";
      }
    } catch (error) {
      if (!id || !(error instanceof TypeError)) throw error; // fetch reports a lost connection as a TypeError
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const request = { model: "fake/lorem?tokens=60&rate=60", messages: [{ role: "user", content: "Go" }] };
const { text, connections } = await ask(request);
console.log(`${text.trim().split(" ").length} words over ${connections} connection${connections > 1 ? "s" : ""}`);
