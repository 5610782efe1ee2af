// What a page of another origin does with a keyed API. `about` is what the test tells it; each exercise tells the test what it saw.
const tell = (what, value) => fetch(`/told/${about.run}/${what}`, { method: "POST", body: JSON.stringify(value) });
const authorized = { Authorization: `Bearer ${about.key}`, "Content-Type": "application/json" };
const question = (more) =>
  JSON.stringify({ model: about.model, messages: [{ role: "user", content: "Go" }], ...more });

const words = (event) => JSON.parse(event).choices?.[0]?.delta?.content ?? "";

// Starts an answer that is only watched later; its id.
async function begin() {
  const response = await fetch(`${about.api}/v1/chat/completions`, {
    method: "POST",
    headers: authorized,
    body: question({ background: true }),
  });
  return (await response.json()).id;
}

// Reads an EventSource, of whichever make, to the end; tells after each event how much it has.
function listen(source, seen) {
  return new Promise((resolve) => {
    source.onopen = () => (seen.opens += 1);
    source.onerror = () => (seen.errors += 1);
    source.onmessage = (event) => {
      if (event.data === "[DONE]") {
        source.close();
        resolve();
        return;
      }
      seen.text += words(event.data);
      tell("words", seen.text);
    };
  });
}

const exercises = {
  // Streams by fetch, and sees which headers it may read.
  async fetch() {
    const response = await fetch(`${about.api}/v1/chat/completions`, {
      method: "POST",
      headers: { ...authorized, "X-Stream-Ids": "1" },
      body: question({ stream: true }),
    });
    const seen = { status: response.status, id: response.headers.get("x-stream-id"), text: "", done: false };
    seen.request = response.headers.get("x-request-id");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line === "data: [DONE]") seen.done = true;
          else if (line.startsWith("data: ")) seen.text += words(line.slice(6));
        }
        tell("words", seen.text);
      }
      seen.ended = "whole";
    } catch (error) {
      seen.ended = error.name;
    }
    await tell("end", seen);
  },

  // The polyfill that people take to send a key from an EventSource.
  async polyfill() {
    const seen = { opens: 0, errors: 0, text: "" };
    const source = new EventSourcePolyfill(`${about.api}/v1/streams/${await begin()}`, {
      headers: { Authorization: authorized.Authorization },
      heartbeatTimeout: 60000,
    });
    await listen(source, seen);
    await tell("end", seen);
  },

  // The browser's own, which cannot send a key: with a token.
  async token() {
    const seen = { opens: 0, errors: 0, text: "" };
    const id = await begin();
    const made = await fetch(`${about.api}/v1/streams/${id}/tokens`, { method: "POST", headers: authorized });
    seen.url = (await made.json()).url;
    await listen(new EventSource(about.api + seen.url), seen);
    await tell("end", seen);
  },

  // What a page that is not named gets.
  async stranger() {
    const seen = {};
    for (const [name, options] of Object.entries({
      chat: { method: "POST", headers: authorized, body: question({ background: true }) },
      list: { headers: { Authorization: authorized.Authorization } },
    })) {
      try {
        const path = name === "chat" ? "/v1/chat/completions" : "/v1/streams";
        seen[name] = (await fetch(about.api + path, options)).status;
      } catch (error) {
        seen[name] = error.name;
      }
    }
    await tell("end", seen);
  },
};

exercises[about.exercise]().catch((error) => tell("end", { broke: String(error) }));
