// Leaves an answer in the middle with Vercel's AI SDK, at the word `w1`: by `break` alone, or with an abort signal.
//
// node leave_ai.mjs BASE_URL MODEL break|abort: prints `left`, and stays until its input ends.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const [baseURL, name, how] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "streamspool", baseURL, apiKey: "any", headers: { "X-On-Disconnect": "cancel" } });
const leaving = new AbortController();
const options = how === "abort" ? { abortSignal: leaving.signal } : {};
const { textStream } = streamText({ model: provider(name), prompt: "Hello", maxRetries: 0, onError() {}, ...options });
for await (const piece of textStream) if (piece === "w1 ") break;
leaving.abort();
console.log("left");
process.stdin.resume().on("end", () => process.exit(0));
