// What a program does with Vercel's AI SDK and its provider for OpenAI, which asks the Responses API by default.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { APICallError, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, apiKey, baseURL, run } from "./harness.mjs";

const { version } = createRequire(import.meta.url)("ai/package.json");
const openai = createOpenAI({ baseURL, apiKey });
const prompt = "one two three";
const asked = (model = "fake/echo", options = {}) => ({ model: openai(model), prompt, maxRetries: 0, ...options });
const tools = Object.fromEntries(["f", "g"].map((name) => [name, tool({ inputSchema: jsonSchema(PARAMETERS) })]));
const working = { f: tool({ inputSchema: jsonSchema(PARAMETERS), execute: ({ x }) => String(x + 3) }) };
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
  async tool_calls() {
    const options = asked("scripted/client-tools", { tools, stopWhen: stepCountIs(1) });
    const streamed = (await parts(options)).filter((part) => part.type === "tool-call");
    for (const calls of [streamed, (await generateText(options)).toolCalls])
      assert.deepEqual(calls.map((call) => [call.toolCallId, call.toolName, call.input]), CALLS);
  },
  async tool_loop() {
    const options = asked("scripted/client-loops", { tools: working, stopWhen: stepCountIs(3) });
    assert.equal((await generateText(options)).text, ANSWER);
    assert.equal(text(await parts(options)), ANSWER);
  },
  async reasoning() {
    const providerOptions = { openai: { reasoningSummary: "auto", forceReasoning: true } };
    const found = await parts(asked("scripted/client-thinks", { providerOptions }));
    assert.deepEqual([text(found, "reasoning-delta"), text(found)], [THOUGHT, ANSWER]);
  },
  // From the second turn on what the model said is sent as references to its items.
  async conversation() {
    const first = await generateText(asked());
    const messages = [{ role: "user", content: prompt }, ...first.response.messages, { role: "user", content: "four" }];
    const { prompt: _, ...options } = asked();
    assert.equal((await generateText({ ...options, messages })).text, "four");
    const providerOptions = { openai: { previousResponseId: first.providerMetadata.openai.responseId } };
    assert.equal((await generateText(asked("fake/echo", { prompt: "five", providerOptions }))).text, "five");
  },
  async carried_reasoning() {
    const providerOptions = { openai: { store: false, include: ["reasoning.encrypted_content"], forceReasoning: true } };
    const first = await generateText(asked("scripted/client-thinks", { providerOptions }));
    const messages = [{ role: "user", content: prompt }, ...first.response.messages, { role: "user", content: "four" }];
    const { prompt: _, ...options } = asked("scripted/client-thinks", { providerOptions });
    assert.equal((await generateText({ ...options, messages })).text, ANSWER);
  },
  async failures() {
    await assert.rejects(generateText(asked("scripted/client-refuses")), (error) => {
      assert(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      return true;
    });
    const found = await parts(asked("scripted/client-broken"));
    assert.ok(found.some((part) => part.type === "error"));
  },
};

await run(checks, version);
