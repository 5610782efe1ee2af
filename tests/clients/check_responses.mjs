// What a program does with the Responses API of the official OpenAI SDK for JavaScript.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import OpenAI from "openai";
import { ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, apiKey, baseURL, run } from "./harness.mjs";

const { VERSION } = createRequire(import.meta.url)("openai/version");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const tools = ["f", "g"].map((name) => ({ type: "function", name, parameters: PARAMETERS, strict: false }));

const create = (model = "fake/echo", options = {}) =>
  client.responses.create({ model, input: "one two three", ...options });
const all = async (stream) => {
  const events = [];
  for await (const event of await stream) if (event.type !== "keepalive") events.push(event);
  return events;
};
const said = (events) => events.map((event) => (event.type === "response.output_text.delta" ? event.delta : "")).join("");
const numbers = (events) => events.map((event) => event.sequence_number);

const checks = {
  async whole() {
    const answer = await create();
    assert.equal(answer.output_text, "one two three");
    assert.equal(answer.usage.output_tokens, 3);
  },
  async stream() {
    const events = await all(create("scripted/client-slow", { stream: true }));
    assert.deepEqual(numbers(events), [...events.keys()]);
    assert.equal(said(events), TEXT);
    assert.equal(events.at(-1).type, "response.completed");
  },
  async stream_helper() {
    const runner = client.responses.stream({ model: "scripted/client-slow", input: "x" });
    const final = await runner.finalResponse();
    assert.equal(final.output_text, TEXT);
    assert.equal(final.status, "completed");
  },
  async stream_is_resumed() {
    const seen = [];
    for await (const event of await create("scripted/client-slow", { stream: true, background: true })) {
      seen.push(event);
      if (event.type === "response.output_text.delta") break;
    }
    const { id } = seen[0].response;
    const last = seen.at(-1).sequence_number;
    const rest = await all(client.responses.retrieve(id, { stream: true, starting_after: last }));
    assert.deepEqual(numbers(rest), [...rest.keys()].map((number) => number + last + 1));
    assert.equal(said(seen) + said(rest), TEXT);
    const runner = client.responses.stream({ response_id: id, starting_after: last });
    assert.equal((await runner.finalResponse()).output_text, TEXT);
  },
  async cancel_and_delete() {
    const { id } = await create("fake/lorem?tokens=1000&rate=10", { background: true });
    assert.equal((await client.responses.cancel(id)).status, "cancelled");
    await client.responses.delete(id);
    await assert.rejects(client.responses.retrieve(id), { status: 404 });
  },
  async tool_calls() {
    const runner = client.responses.stream({ model: "scripted/client-tools", input: "x", tools });
    for (const answer of [await runner.finalResponse(), await create("scripted/client-tools", { tools })]) {
      const calls = answer.output.filter((item) => item.type === "function_call");
      assert.deepEqual(calls.map((call) => [call.call_id, call.name, JSON.parse(call.arguments)]), CALLS);
    }
  },
  async reasoning() {
    const answer = await create("scripted/client-thinks", { reasoning: { summary: "auto" } });
    assert.equal(answer.output[0].summary[0].text, THOUGHT);
    const runner = client.responses.stream({ model: "scripted/client-thinks", input: "x", reasoning: { summary: "auto" } });
    assert.equal((await runner.finalResponse()).output_text, ANSWER);
  },
  async previous_response_and_input_items() {
    const first = await create();
    const second = await create("fake/echo", { input: "four", previous_response_id: first.id });
    const items = [];
    for await (const item of client.responses.inputItems.list(second.id)) items.push(item);
    assert.deepEqual(items.map((item) => item.content[0].text), ["four"]);
  },
  async conversations() {
    const { conversations } = client;
    const said = (text) => ({ type: "message", role: "user", content: text });
    const made = await conversations.create({ items: [said("one")], metadata: { a: "b" } });
    assert.deepEqual((await conversations.retrieve(made.id)).metadata, { a: "b" });
    assert.deepEqual((await conversations.update(made.id, { metadata: { c: "d" } })).metadata, { c: "d" });
    const added = await conversations.items.create(made.id, { items: [said("two")] });
    assert.equal(added.data.length, 1);
    const answer = await create("fake/echo", { input: "three", conversation: made.id });
    assert.equal(answer.conversation.id, made.id);
    const texts = async () => {
      const found = [];
      for await (const item of conversations.items.list(made.id, { order: "asc", limit: 2 })) found.push(item.content[0].text);
      return found;
    };
    assert.deepEqual(await texts(), ["one", "two", "three", "three"]);
    const item = await conversations.items.retrieve(added.data[0].id, { conversation_id: made.id });
    assert.equal(item.content[0].text, "two");
    await conversations.items.delete(item.id, { conversation_id: made.id });
    assert.deepEqual(await texts(), ["one", "three", "three"]);
    assert.equal((await conversations.delete(made.id)).deleted, true);
    await assert.rejects(conversations.retrieve(made.id), { status: 404 });
  },
  async carried_reasoning() {
    const options = { store: false, include: ["reasoning.encrypted_content"] };
    const first = await create("scripted/client-thinks", options);
    assert.equal(typeof first.output[0].encrypted_content, "string");
    const input = [{ role: "user", content: "x" }, ...first.output, { role: "user", content: "y" }];
    assert.equal((await create("scripted/client-thinks", { ...options, input })).output_text, ANSWER);
  },
  async failures() {
    await assert.rejects(create("scripted/client-refuses"), { status: 400, code: "no_such_thing" });
    const events = await all(create("scripted/client-broken", { stream: true }));
    assert.equal(events.at(-1).type, "response.failed");
  },
};

await run(checks, VERSION);
