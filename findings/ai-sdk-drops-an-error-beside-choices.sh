#!/usr/bin/env bash
# Package: ai 7.0.173 with @ai-sdk/openai 4.0.118 and @ai-sdk/openai-compatible 3.0.92 (npm), on node 24.21.0 (npm).
# Behaviour: OpenRouter tells an answer that broke in the middle by a chunk with `error` beside `choices`, whose finish reason
#   is "error". The provider for OpenAI reads the choices and drops the error: half of the answer, finished by "other", and no
#   error anywhere. Its sibling for compatible servers tells it. An error alone in its event both tell.
# For us: an error of a provider leaves us in an event of its own, whatever it came beside.
# Seen: error beside choices: openai "half", other, no error; openai-compatible "half", error, The model broke.; alone: openai "half", error, The model broke.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund node@24.21.0 ai@7.0.173 @ai-sdk/openai@4.0.118 \
  @ai-sdk/openai-compatible@3.0.92 zod@4.6.7 >/dev/null
cat >"$dir/break.mjs" <<'JS'
import { createOpenAI } from "@ai-sdk/openai"
import { createOpenAICompatible } from "@ai-sdk/openai-compatible"
import { streamText } from "ai"

const about = { id: "c", object: "chat.completion.chunk", created: 1, model: "m" }
const choices = (content, finish_reason) => [{ index: 0, delta: { role: "assistant", content }, finish_reason }]
const error = { code: 502, message: "The model broke." }
const beside = { ...about, error, choices: choices("", "error") }
const alone = { error }

async function read(create, last) {
  const body = [{ ...about, choices: choices("half", null) }, last].map((event) => `data: ${JSON.stringify(event)}\n\n`)
  const headers = { "Content-Type": "text/event-stream" }
  const fetch = async () => new Response(body.join("") + "data: [DONE]\n\n", { headers })
  const provider = create({ name: "provider", baseURL: "http://provider/v1", apiKey: "key", fetch })
  const model = create === createOpenAI ? provider.chat("m") : provider("m")
  let text = "", told = "no error", finish
  for await (const part of streamText({ model, prompt: "hello", maxRetries: 0, onError() {} }).fullStream) {
    if (part.type === "text-delta") text += part.text
    if (part.type === "error") told = part.error.message
    if (part.type === "finish") finish = part.finishReason
  }
  return `"${text}", ${finish}, ${told}`
}
const seen = [await read(createOpenAI, beside), await read(createOpenAICompatible, beside), await read(createOpenAI, alone)]
console.log(`error beside choices: openai ${seen[0]}; openai-compatible ${seen[1]}; alone: openai ${seen[2]}`)
const broken = '"half", error, The model broke.'
process.exit(seen.join() === ['"half", other, no error', broken, broken].join() ? 0 : 1)
JS
"$dir/node_modules/.bin/node" "$dir/break.mjs"
