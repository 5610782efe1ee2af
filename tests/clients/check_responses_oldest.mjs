// What a program does with the Responses API of the oldest official OpenAI SDK for JavaScript that has it. It streams, and knows no
// way to go on with a stream by its id; `retrieve` gives the whole.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";
import OpenAI from "openai-oldest";
import { ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, apiKey, baseURL, run } from "./harness.mjs";

const { VERSION } = createRequire(import.meta.url)("openai-oldest/version");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const tools = ["f", "g"].map((name) => ({ type: "function", name, parameters: PARAMETERS, strict: false }));

const create = (model = "fake/echo", options = {}) =>
  client.responses.create({ model, input: "one two three", ...options });
// Its `output_text` comes with a later version.
const textOf = ({ output }) => output.flatMap((item) => item.content ?? []).map((part) => part.text).join("");
const all = async (stream) => {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
};

const checks = {
  async whole() {
    const answer = await create();
    assert.deepEqual([textOf(answer), answer.status, answer.usage.output_tokens], ["one two three", "completed", 3]);
  },
  async stream() {
    const events = await all(create("scripted/client-slow", { stream: true }));
    assert.equal(events.map((event) => (event.type === "response.output_text.delta" ? event.delta : "")).join(""), TEXT);
    assert.equal(events.at(-1).type, "response.completed");
  },
  async retrieve_and_delete() {
    let answer = await create("fake/echo", { background: true });
    while (["queued", "in_progress"].includes(answer.status)) {
      await pause(50);
      answer = await client.responses.retrieve(answer.id);
    }
    assert.deepEqual([answer.status, textOf(answer)], ["completed", "one two three"]);
    const items = [];
    for await (const item of client.responses.inputItems.list(answer.id)) items.push(item);
    assert.deepEqual(items.map((item) => item.content[0].text), ["one two three"]);
    await client.responses.del(answer.id);
    await assert.rejects(client.responses.retrieve(answer.id), { status: 404 });
  },
  async tool_calls() {
    const answer = await create("scripted/client-tools", { tools });
    const calls = answer.output.filter((item) => item.type === "function_call");
    assert.deepEqual(calls.map((call) => [call.call_id, call.name, JSON.parse(call.arguments)]), CALLS);
    const outputs = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "4" }));
    const input = [{ role: "user", content: "x" }, ...answer.output, ...outputs];
    assert.equal((await create("fake/echo", { input })).status, "completed");
    assert.equal((await create("fake/echo", { input: outputs, previous_response_id: answer.id })).status, "completed");
  },
  async reasoning() {
    const answer = await create("scripted/client-thinks", { reasoning: { effort: "low", generate_summary: "concise" } });
    assert.equal(answer.output[0].summary[0].text, THOUGHT);
    assert.equal(textOf(answer), ANSWER);
  },
  async failures() {
    await assert.rejects(create("scripted/client-refuses"), { status: 400, code: "no_such_thing" });
    const events = await all(create("scripted/client-broken", { stream: true }));
    assert.deepEqual([events.at(-1).type, events.at(-1).response.error.code], ["response.failed", "server_error"]);
  },
};

await run(checks, VERSION);
