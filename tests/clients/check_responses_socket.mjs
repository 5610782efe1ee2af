// What a program does with the WebSocket mode of the official OpenAI SDK for JavaScript: ResponsesWS.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";
import { CALLS, PARAMETERS, TEXT, apiKey, baseURL, run } from "./harness.mjs";

const { VERSION } = createRequire(import.meta.url)("openai/version");
const client = new OpenAI({ baseURL, apiKey });
const tools = ["f", "g"].map((name) => ({ type: "function", name, parameters: PARAMETERS, strict: false }));
const ENDS = ["response.completed", "response.failed", "response.incomplete", "error"];

// The messages of a socket, for as long as `use` wants some.
async function connected(use) {
  const socket = new ResponsesWS(client);
  socket.on("error", () => {}); // an error is an event of the stream, too
  const messages = socket.stream();
  const next = async () => {
    for (;;) {
      const { value, done } = await messages.next();
      assert.ok(!done && value.type !== "close", "the socket was closed");
      if (value.type === "error") return JSON.parse(value.error.message); // the library's error has the event for its text
      if (value.type === "message" && value.message.type !== "keepalive") return value.message;
    }
  };
  try {
    await use(socket, next);
  } finally {
    socket.close();
  }
}

const send = (socket, fields) => socket.send({ type: "response.create", model: "fake/echo", input: "one", ...fields });
async function ask(socket, next, fields = {}) {
  send(socket, fields);
  for (;;) {
    const event = await next();
    if (ENDS.includes(event.type)) return event;
  }
}
const text = ({ response }) => response.output.flatMap((item) => item.content ?? []).map((part) => part.text).join("");

const checks = {
  async whole() {
    await connected(async (socket, next) => assert.equal(text(await ask(socket, next)), "one"));
  },
  async events() {
    await connected(async (socket, next) => {
      send(socket, { model: "scripted/client-slow" });
      const seen = [];
      do seen.push(await next());
      while (!ENDS.includes(seen.at(-1).type));
      assert.deepEqual(seen.map((event) => event.sequence_number), [...seen.keys()]);
      assert.equal(text(seen.at(-1)), TEXT);
    });
  },
  async lanes() {
    await connected(async (socket, next) => {
      send(socket, { model: "fake/lorem?tokens=4&rate=1", stream_id: "a" });
      send(socket, { input: "b", stream_id: "b" });
      const ended = [];
      while (ended.length < 2) {
        const event = await next();
        if (ENDS.includes(event.type)) ended.push([event.stream_id, text(event)]);
      }
      assert.deepEqual(ended, [["b", "b"], ["a", "lorem ipsum dolor sit "]]);
    });
  },
  async tool_loop_without_store() {
    await connected(async (socket, next) => {
      const first = await ask(socket, next, { model: "scripted/client-tools", tools, store: false });
      const calls = first.response.output.filter((item) => item.type === "function_call");
      assert.deepEqual(calls.map((call) => call.call_id), CALLS.map(([id]) => id));
      const input = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "4" }));
      const second = await ask(socket, next, { input, tools, store: false, previous_response_id: first.response.id });
      assert.equal(second.type, "response.completed");
    });
  },
  async failures() {
    await connected(async (socket, next) => {
      const refused = await ask(socket, next, { previous_response_id: "resp_0" });
      assert.deepEqual([refused.status, refused.error.code], [404, "previous_response_not_found"]);
      assert.equal((await ask(socket, next, { model: "scripted/client-broken" })).type, "response.failed");
      assert.equal(text(await ask(socket, next)), "one");
    });
  },
};

await run(checks, VERSION);
