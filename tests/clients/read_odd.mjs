// What OpenAI's SDK for JavaScript and Vercel's AI SDK make of streams: one JSON object, by SDK and model.
// Arguments: base URL, key, and the models as a JSON list.

import { jsonSchema, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import OpenAI from "openai";
import { apiKey, baseURL, messages } from "./harness.mjs";

const models = JSON.parse(process.argv[4]);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const provider = createOpenAICompatible({ name: "streamspool", baseURL, apiKey, includeUsage: true });
const inputSchema = jsonSchema({ type: "object" });
const tools = { f: tool({ inputSchema }), g: tool({ inputSchema }) };

async function byOpenAI(model) {
  const runner = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
  const answer = await runner.finalChatCompletion();
  const [{ message, finish_reason: finish }] = answer.choices;
  const calls = (message.tool_calls ?? []).map((call) => [call.id, call.function.name, call.function.arguments]);
  const usage = answer.usage && [answer.usage.prompt_tokens, answer.usage.completion_tokens];
  return { text: message.content ?? "", calls, finish, usage: usage ?? null };
}

async function byAI(model) {
  const found = [];
  for await (const part of streamText({ model: provider(model), messages, tools, maxRetries: 0, onError() {} }).fullStream)
    found.push(part);
  const failure = found.find((part) => part.type === "error");
  if (failure) throw failure.error;
  const of = (type) => found.filter((part) => part.type === type);
  const calls = of("tool-call").map((call) => [call.toolCallId, call.toolName, JSON.stringify(call.input)]);
  const { finishReason, totalUsage } = found.at(-1);
  const usage = [totalUsage.inputTokens ?? null, totalUsage.outputTokens ?? null];
  return { text: of("text-delta").map((part) => part.text).join(""), calls, finish: finishReason.replace("-", "_"), usage };
}

const report = { openai: {}, ai: {} };
for (const [name, read] of [["openai", byOpenAI], ["ai", byAI]])
  for (const model of models)
    report[name][model] = await read(model).catch((error) => ({ error: String(error?.message ?? error) }));
console.log(JSON.stringify(report));
