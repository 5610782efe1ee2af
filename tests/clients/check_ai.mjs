// What a program with Vercel's AI SDK does, through its provider for OpenAI-compatible servers.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { APICallError, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, apiKey, baseURL, run } from "./harness.mjs";

const { version } = createRequire(import.meta.url)("ai/package.json");
const provider = createOpenAICompatible({ name: "streamspool", baseURL, apiKey, includeUsage: true });
const prompt = "one two three";
const asked = (model = "fake/echo", options = {}) => ({ model: provider(model), prompt, maxRetries: 0, ...options });
const tools = Object.fromEntries(["f", "g"].map((name) => [name, tool({ inputSchema: jsonSchema(PARAMETERS) })]));
const parts = async (options) => {
  const found = [];
  for await (const part of streamText({ ...options, onError() {} }).fullStream) found.push(part);
  return found;
};
const text = (found, type = "text-delta") =>
  found.filter((part) => part.type === type).map((part) => part.text).join("");

const checks = {
  async whole() {
    const answer = await generateText(asked());
    assert.equal(answer.text, prompt);
    assert.equal(answer.finishReason, "stop");
    assert.equal(answer.usage.outputTokens, 3);
  },
  async stream() {
    const found = await parts(asked("scripted/client-slow"));
    assert.equal(text(found), TEXT);
    assert.equal(found.at(-1).finishReason, "stop");
  },
  async stream_with_usage() {
    assert.equal((await parts(asked())).at(-1).totalUsage.outputTokens, 3);
  },
  async tool_calls() {
    const options = asked("scripted/client-tools", { tools, stopWhen: stepCountIs(1) });
    const streamed = (await parts(options)).filter((part) => part.type === "tool-call");
    for (const calls of [streamed, (await generateText(options)).toolCalls])
      assert.deepEqual(calls.map((call) => [call.toolCallId, call.toolName, call.input]), CALLS);
  },
  async reasoning() {
    const found = await parts(asked("scripted/client-thinks"));
    assert.deepEqual([text(found, "reasoning-delta"), text(found)], [THOUGHT, ANSWER]);
    const whole = await generateText(asked("scripted/client-thinks"));
    assert.deepEqual([whole.reasoningText, whole.text], [THOUGHT, ANSWER]);
  },
  async refusal() {
    await assert.rejects(generateText(asked("scripted/client-refuses")), (error) => {
      assert(APICallError.isInstance(error));
      assert.deepEqual([error.statusCode, error.message], [400, "scripted: There is no such thing."]);
      return true;
    });
  },
  async rate_limit() {
    await assert.rejects(generateText(asked("scripted/client-limit")), (error) => {
      assert(APICallError.isInstance(error));
      assert.equal(error.statusCode, 429);
      return true;
    });
  },
  async error_in_the_middle() {
    const found = await parts(asked("scripted/client-broken"));
    assert.equal(text(found), "w0 w1 ");
    const errors = found.filter((part) => part.type === "error");
    assert.equal(errors.length, 1);
    assert.match(JSON.stringify(errors[0].error) + String(errors[0].error), /the machine is on fire/);
  },
  async a7_half_an_answer_is_told_by_the_finish_reason_alone() {
    const told = [];
    const answer = streamText({ ...asked("scripted/client-broken"), onError: (event) => told.push(event) });
    assert.equal(await answer.text, "w0 w1 ");
    assert.equal(await answer.finishReason, "error");
    assert.equal(told.length, 1);
  },
  async hang_up() {
    const leaving = new AbortController();
    const { textStream } = streamText(asked("scripted/client-waits", { abortSignal: leaving.signal }));
    for await (const piece of textStream) if (piece === "w1 ") break;
    leaving.abort();
  },
};

await run(checks, version);
