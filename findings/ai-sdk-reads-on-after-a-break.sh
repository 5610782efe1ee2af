#!/usr/bin/env bash
# Package: ai 7.0.173 with @ai-sdk/openai 4.0.118 (npm), on the Node that is there (20 or newer).
# Behaviour: leaving the loop over `textStream` by `break` closes nothing: the SDK reads the answer to its end behind the
#   loop's back, and all of it is generated and paid for. Only an `abortSignal` closes the connection.
# For us: a viewer that left its loop does not look gone, so cancel on disconnect needs the signal.
# Seen: break after 3 of 40 words: the server could send 40; abort after 3: it was closed early
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund ai@7.0.173 @ai-sdk/openai@4.0.118 zod@4.6.7 >/dev/null
cat >"$dir/leave.mjs" <<'JS'
import http from "node:http"
import { setTimeout as sleep } from "node:timers/promises"
import { createOpenAI } from "@ai-sdk/openai"
import { streamText } from "ai"

const WORDS = 40
let sent, over

const server = http.createServer(async (request, response) => {
  response.on("close", () => over?.())
  response.writeHead(200, { "Content-Type": "text/event-stream" })
  const about = { id: "c", object: "chat.completion.chunk", created: 1, model: "m" }
  const say = (delta, finish_reason) =>
    response.write(`data: ${JSON.stringify({ ...about, choices: [{ index: 0, delta, finish_reason }] })}\n\n`)
  for (; sent < WORDS && !response.destroyed; sent++) {
    say({ content: "word " }, null)
    await sleep(25)
  }
  say({}, "stop")
  response.end("data: [DONE]\n\n")
})
await new Promise((listening) => server.listen(0, "127.0.0.1", listening))
const model = createOpenAI({ baseURL: `http://127.0.0.1:${server.address().port}/v1`, apiKey: "key" }).chat("m")

async function leave(abort) {
  sent = 0
  const closed = new Promise((resolve) => (over = resolve))
  const stop = new AbortController()
  const { textStream } = streamText({ model, prompt: "hello", abortSignal: stop.signal, onError() {} })
  let read = 0
  for await (const _ of textStream) if (++read === 3) break
  if (abort) stop.abort()
  await closed
  return sent
}
const [broken, aborted] = [await leave(false), await leave(true)]
const after = aborted < WORDS ? "it was closed early" : `it could send ${aborted}`
console.log(`break after 3 of ${WORDS} words: the server could send ${broken}; abort after 3: ${after}`)
process.exit(broken === WORDS && aborted < WORDS ? 0 : 1)
JS
node "$dir/leave.mjs"
