#!/usr/bin/env bash
# Package: @langchain/openai 1.6.0 with @langchain/core 1.4.0 and openai 7.55.0 (npm), on node 24.21.0 (npm).
# Behaviour: with `useResponsesApi` a stream that ends with the event `response.failed`, as one of OpenAI's does when the model
#   breaks in the middle, ends without an error: half of the answer, and nothing in its metadata that says so, not even a
#   status. A whole answer has one, and so has one that was cut by its length; the event `error` is raised.
# For us: our `response.failed` is not seen there; a viewer has to miss the `status`, or to ask for chat completions.
# Seen: completed: "half rest", status completed; incomplete: "half rest", status incomplete; error: APIError; failed: "half ", status undefined
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund node@24.21.0 @langchain/openai@1.6.0 @langchain/core@1.4.0 \
  openai@7.55.0 >/dev/null
cat >"$dir/fail.mjs" <<'JS'
import { ChatOpenAI } from "@langchain/openai"

const place = { item_id: "msg_1", output_index: 0, content_index: 0 }
const message = (status, ...texts) => ({ id: "msg_1", type: "message", role: "assistant", status,
  content: texts.map((text) => ({ type: "output_text", text, annotations: [] })) })
const response = (status, output, more = {}) => ({ id: "resp_1", object: "response", created_at: 1, model: "m", status, output,
  error: null, incomplete_details: null, parallel_tool_calls: true, tool_choice: "auto", tools: [], ...more })
const delta = (text) => ({ type: "response.output_text.delta", ...place, delta: text, logprobs: [] })
const usage = { input_tokens: 3, output_tokens: 2, total_tokens: 5, input_tokens_details: { cached_tokens: 0 },
  output_tokens_details: { reasoning_tokens: 0 } }
const half = [
  { type: "response.created", response: response("in_progress", []) },
  { type: "response.output_item.added", output_index: 0, item: message("in_progress") },
  { type: "response.content_part.added", ...place, part: { type: "output_text", text: "", annotations: [] } },
  delta("half "),
]
const whole = [message("completed", "half rest")]
const tooLong = { usage, incomplete_details: { reason: "max_output_tokens" } }
const broken = { error: { code: "server_error", message: "The model broke." } }
const streams = {
  completed: [...half, delta("rest"), { type: "response.completed", response: response("completed", whole, { usage }) }],
  incomplete: [...half, delta("rest"), { type: "response.incomplete", response: response("incomplete", whole, tooLong) }],
  error: [...half, { type: "error", code: "server_error", message: "The model broke.", param: null }],
  failed: [...half, { type: "response.failed", response: response("failed", [message("incomplete", "half ")], broken) }],
}

async function read(events) {
  const told = events.map((event, n) => `event: ${event.type}\ndata: ${JSON.stringify({ ...event, sequence_number: n })}\n\n`)
  const fetch = async () => new Response(told.join(""), { headers: { "Content-Type": "text/event-stream" } })
  const model = new ChatOpenAI({ model: "m", apiKey: "key", maxRetries: 0, useResponsesApi: true, configuration: { fetch } })
  let all
  try {
    for await (const chunk of await model.stream("hello")) all = all ? all.concat(chunk) : chunk
    return `"${all.text}", status ${all.response_metadata.status}`
  } catch (error) {
    return error.constructor.name
  }
}
const seen = []
for (const [name, events] of Object.entries(streams)) seen.push(`${name}: ${await read(events)}`)
console.log(seen.join("; "))
process.exit(seen[0].endsWith("status completed") && seen[2] === "error: APIError" && seen[3] === 'failed: "half ", status undefined' ? 0 : 1)
JS
"$dir/node_modules/.bin/node" "$dir/fail.mjs"
