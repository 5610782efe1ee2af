#!/usr/bin/env bash
# Package: ai 7.0.173 with @ai-sdk/openai 4.0.118 (npm), on the Node that is there (20 or newer).
# Behaviour: a streamed request that was answered with 200, and whose first event is an error, is made again, twice. After a
#   word of the answer it is not. A 500 with `x-should-retry: false`, which OpenAI's own clients obey, is made again as well.
# For us: a failed answer may be started three times, unless the requests carry one Idempotency-Key.
# Seen: requests for one streamText(): 200 and an error first: 3; after a word: 1; 500 with x-should-retry false: 3
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund ai@7.0.173 @ai-sdk/openai@4.0.118 zod@4.6.7 >/dev/null
cat >"$dir/repeat.mjs" <<'JS'
import { createOpenAI } from "@ai-sdk/openai"
import { streamText } from "ai"

const error = { error: { message: "The model broke.", type: "server_error", param: null, code: null } }
const choices = [{ index: 0, delta: { content: "word" }, finish_reason: null }]
const word = { id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices }

async function requests(answer) {
  let made = 0
  const fetch = async () => (made++, answer())
  const model = createOpenAI({ apiKey: "key", fetch }).chat("m")
  await streamText({ model, prompt: "hello", onError() {} }).consumeStream({ onError() {} })
  return made
}
const stream = (...events) => () => {
  const body = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("") + "data: [DONE]\n\n"
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } })
}
const refused = () => Response.json(error, { status: 500, headers: { "x-should-retry": "false" } })

const made = [await requests(stream(error)), await requests(stream(word, error)), await requests(refused)]
const [first, later, status] = made
const counted = `200 and an error first: ${first}; after a word: ${later}; 500 with x-should-retry false: ${status}`
console.log(`requests for one streamText(): ${counted}`)
process.exit(made.join() === "3,1,3" ? 0 : 1)
JS
node "$dir/repeat.mjs"
