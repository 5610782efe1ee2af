#!/usr/bin/env bash
# Package: ai 7.0.173 with @ai-sdk/openai 4.0.118 (npm), on the Node that is there (20 or newer).
# Behaviour: with the plain `createOpenAI()("model")`, which asks /v1/responses, the second request of a chat does not hold
#   what the model said in the first: its text is sent as {"type": "item_reference", "id": …} alone, with no
#   previous_response_id and no `store`. Nothing was set to ask for that.
# For us: a /v1/responses has to keep every output item by its id; a translator without memory loses the model's words.
# Seen: second request: user, item_reference msg_1, user; holds the first answer's text: false
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund ai@7.0.173 @ai-sdk/openai@4.0.118 zod@4.6.7 >/dev/null
cat >"$dir/turns.mjs" <<'JS'
import { createOpenAI } from "@ai-sdk/openai"
import { generateText } from "ai"

const TEXT = "The capital of France is Paris."
const content = [{ type: "output_text", text: TEXT, annotations: [] }]
const answer = {
  id: "resp_1", object: "response", created_at: 1, model: "m", status: "completed", error: null, incomplete_details: null,
  output: [{ id: "msg_1", type: "message", role: "assistant", status: "completed", content }],
  parallel_tool_calls: true, tool_choice: "auto", tools: [],
  usage: { input_tokens: 1, output_tokens: 1, total_tokens: 2 },
}
const bodies = []
const fetch = async (_url, { body }) => (bodies.push(body), Response.json(answer))
const model = createOpenAI({ apiKey: "key", fetch })("m")

const messages = [{ role: "user", content: "What is the capital of France?" }]
const first = await generateText({ model, messages })
messages.push(...first.response.messages, { role: "user", content: "And of Spain?" })
await generateText({ model, messages })

const items = JSON.parse(bodies[1]).input.map(({ type, role, id }) => (type === "item_reference" ? `${type} ${id}` : role))
const held = bodies[1].includes(TEXT)
console.log(`second request: ${items.join(", ")}; holds the first answer's text: ${held}`)
process.exit(items[1] === "item_reference msg_1" && !held ? 0 : 1)
JS
node "$dir/turns.mjs"
