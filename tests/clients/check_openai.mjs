// What a program with the official OpenAI SDK for JavaScript does.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import OpenAI, { toFile } from "openai";
import { Stream } from "openai/streaming";
import { ANSWER, CALLS, TEXT, THOUGHT, TOOLS, apiKey, baseURL, messages, run } from "./harness.mjs";

const { VERSION } = createRequire(import.meta.url)("openai/version");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });

const create = (model = "fake/echo", options = {}, request = {}) =>
  client.chat.completions.create({ model, messages, ...options }, request);
const said = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
const all = async (stream) => {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
};
// The SDK asks for JSON unless told otherwise.
const view = async (path, query = {}) => {
  const headers = { accept: "text/event-stream" };
  const response = await client.get(path, { query, headers, __binaryResponse: true }).asResponse();
  return all(Stream.fromSSEResponse(response, new AbortController()));
};

const checks = {
  async whole() {
    const answer = await create();
    assert.equal(answer.choices[0].message.content, "one two three");
    assert.equal(answer.usage.completion_tokens, 3);
  },
  async stream() {
    const chunks = await all(create("fake/echo", { stream: true }));
    assert.equal(said(chunks), "one two three");
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  },
  async stream_with_usage() {
    const chunks = await all(create("fake/echo", { stream: true, stream_options: { include_usage: true } }));
    assert.equal(chunks.filter((chunk) => chunk.usage).length, 1);
    assert.equal(chunks.at(-1).usage.completion_tokens, 3);
  },
  async stream_with_keepalives() {
    assert.equal(said(await all(create("scripted/client-slow", { stream: true }))), TEXT);
  },
  async stream_with_ids_and_keepalives() {
    const headers = { "X-Stream-Ids": "1" };
    assert.equal(said(await all(create("scripted/client-slow", { stream: true }, { headers }))), TEXT);
  },
  async stream_helper() {
    const runner = client.chat.completions.stream({ model: "scripted/client-slow", messages });
    assert.equal(await runner.finalContent(), TEXT);
    assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, "stop");
  },
  async tool_calls() {
    const runner = client.chat.completions.stream({ model: "scripted/client-tools", messages, tools: TOOLS });
    const final = await runner.finalChatCompletion();
    const whole = await create("scripted/client-tools");
    for (const answer of [final, whole]) {
      const calls = answer.choices[0].message.tool_calls.map((call) => [call.id, call.function.name, JSON.parse(call.function.arguments)]);
      assert.deepEqual(calls, CALLS);
    }
  },
  async reasoning() {
    const deltas = (await all(create("scripted/client-thinks", { stream: true }))).map((chunk) => chunk.choices[0].delta);
    assert.equal(deltas.map((delta) => delta.reasoning_content ?? "").join(""), THOUGHT);
    assert.equal(deltas.map((delta) => delta.content ?? "").join(""), ANSWER);
    const { message } = (await create("scripted/client-thinks")).choices[0];
    assert.deepEqual([message.reasoning_content, message.content], [THOUGHT, ANSWER]);
  },
  async raw_response_names_the_stream() {
    const { data, response } = await create().withResponse();
    assert.equal(response.headers.get("x-stream-id"), data.id);
  },
  async resume() {
    const got = [];
    for await (const chunk of await create("scripted/client-slow", { stream: true })) {
      got.push(chunk);
      if (got.length === 3) break;
    }
    const path = `/chat/completions/${got[0].id}`;
    const rest = await view(path, { stream: "true", starting_after: got.length });
    assert.equal(said([...got, ...rest]), TEXT);
    assert.deepEqual([...got, ...rest], await view(`/streams/${got[0].id}`));
  },
  async retrieve() {
    const answer = await create();
    const again = await client.get(`/chat/completions/${answer.id}`);
    assert.equal(again.choices[0].message.content, "one two three");
  },
  async stored_completions() {
    const run = randomUUID();
    const completions = client.chat.completions;
    const ids = [];
    for (let n = 0; n < 3; n++) ids.push((await create("fake/echo", { store: true, metadata: { run, n: `${n}` } })).id);
    const list = async (query) => (await all(completions.list({ metadata: { run }, ...query }))).map((one) => one.id);
    assert.deepEqual(await list({}), ids);
    assert.deepEqual(await list({ limit: 1 }), ids, "page by page");
    assert.deepEqual(await list({ order: "desc" }), ids.toReversed());
    assert.deepEqual(await list({ metadata: { run, n: "1" }, model: "fake/echo" }), [ids[1]]);
    assert.deepEqual(await list({ after: ids[1] }), [ids[2]]);
    assert.equal((await completions.retrieve(ids[0])).choices[0].message.content, "one two three");
    const updated = await completions.update(ids[0], { metadata: { run, a: "b" } });
    assert.deepEqual(updated.metadata, { run, a: "b" });
    const [message, ...others] = await all(completions.messages.list(ids[0]));
    assert.deepEqual([message.id, message.role, message.content], [`${ids[0]}-0`, "user", "one two three"]);
    assert.deepEqual(others, []);
    for (const id of ids)
      assert.deepEqual(await completions.delete(id), { object: "chat.completion.deleted", id, deleted: true });
    assert.deepEqual(await list({}), []);
    await assert.rejects(completions.retrieve(ids[0]), OpenAI.NotFoundError);
  },
  async unknown_model() {
    for (const stream of [true, false])
      await assert.rejects(create("nobody/x", { stream }), (error) => {
        assert(error instanceof OpenAI.NotFoundError);
        assert.equal(error.code, "model_not_found");
        return true;
      });
  },
  async bad_parameter() {
    await assert.rejects(create("fake/echo", { n: 0 }), (error) => {
      assert(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "n");
      return true;
    });
  },
  async wrong_key() {
    const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  },
  async refusal() {
    await assert.rejects(create("scripted/client-refuses"), (error) => {
      assert(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.code, error.param], ["no_such_thing", "thing"]);
      return true;
    });
  },
  async rate_limit() {
    await assert.rejects(create("scripted/client-limit", {}, { maxRetries: 2 }), OpenAI.RateLimitError);
  },
  async error_in_the_middle() {
    const got = [];
    const reading = (async () => {
      for await (const chunk of await create("scripted/client-broken", { stream: true })) got.push(chunk);
    })();
    await assert.rejects(reading, OpenAI.APIError);
    assert.equal(said(got), "w0 w1 ");
  },
  async error_in_the_middle_of_the_helper() {
    const runner = client.chat.completions.stream({ model: "scripted/client-broken", messages });
    await assert.rejects(runner.finalContent(), OpenAI.OpenAIError);
  },
  async a10_the_helper_keeps_the_last_piece_of_reasoning() {
    const runner = client.chat.completions.stream({ model: "scripted/client-thinks", messages });
    const { choices, id } = await runner.finalChatCompletion();
    assert.equal(choices[0].message.content, ANSWER);
    assert.equal(choices[0].message.reasoning_content, "see. ");
    const whole = await client.chat.completions.retrieve(id);
    assert.equal(whole.choices[0].message.reasoning_content, THOUGHT);
  },
  async hang_up() {
    for await (const chunk of await create("scripted/client-waits", { stream: true }))
      if (chunk.choices[0].delta.content === "w1 ") break;
  },
  async files() {
    const file = await client.files.create({
      file: await toFile(Buffer.from("0123456789"), "in.jsonl"),
      purpose: "batch",
      expires_after: { anchor: "created_at", seconds: 3600 },
    });
    assert.deepEqual([file.bytes, file.filename, file.expires_at - file.created_at], [10, "in.jsonl", 3600]);
    assert.deepEqual(await client.files.retrieve(file.id), file);
    const ids = [];
    for await (const one of client.files.list({ purpose: "batch" })) ids.push(one.id);
    assert(ids.includes(file.id));
    assert.equal(await (await client.files.content(file.id)).text(), "0123456789");
    assert.equal((await client.files.delete(file.id)).deleted, true);
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  },
  async batch() {
    const body = { model: "fake/echo", messages };
    const lines = [0, 1, 2].map((n) => JSON.stringify({ custom_id: `id-${n}`, method: "POST", url: "/v1/chat/completions", body }));
    const file = await client.files.create({ file: await toFile(Buffer.from(lines.join("\n")), "in.jsonl"), purpose: "batch" });
    let batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
      output_expires_after: { anchor: "created_at", seconds: 3600 },
    });
    const ids = [];
    for await (const one of client.batches.list({ limit: 5 })) ids.push(one.id);
    assert(ids.includes(batch.id));
    while (!["completed", "failed"].includes(batch.status)) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      batch = await client.batches.retrieve(batch.id);
    }
    assert.deepEqual([batch.status, batch.request_counts], ["completed", { total: 3, completed: 3, failed: 0 }]);
    const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((text) => JSON.parse(text));
    assert.deepEqual(output.map((one) => one.custom_id).sort(), ["id-0", "id-1", "id-2"]);
    assert.equal(output[0].response.body.choices[0].message.content, "one two three");
    await assert.rejects(client.batches.cancel(batch.id), OpenAI.BadRequestError);
  },
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert(names.includes("fake/echo"));
    assert.equal((await client.models.retrieve("fake/echo")).id, "fake/echo");
    await assert.rejects(client.models.retrieve("nobody/x"), OpenAI.NotFoundError);
  },
};

await run(checks, VERSION);
