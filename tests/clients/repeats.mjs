// How often each SDK makes a request that is answered with an error, with its own defaults.
//
// Called with the URL of a server and a JSON array of cases: it asks `URL/SDK/CASE/v1`, and the server counts. With the
// further argument `once`, only the AI SDK asks, at `URL/v1`, for the model named by the case, with the headers that follow.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const [url, given, once, headers] = process.argv.slice(2);
const cases = JSON.parse(given);
const prompt = "Hello";
const ignore = () => {};

const openai = (baseURL, stream) => {
  const client = new OpenAI({ baseURL, apiKey: "any" });
  return client.chat.completions.create({ model: "m", messages: [{ role: "user", content: prompt }], stream });
};
const model = (baseURL, name, more = {}) => createOpenAICompatible({ name: "streamspool", baseURL, apiKey: "any", ...more })(name);

async function openaiNode(baseURL, stream) {
  const answer = await openai(baseURL, stream);
  if (stream) for await (const _ of answer);
}
async function aiSdk(baseURL, stream) {
  if (!stream) return generateText({ model: model(baseURL, "m"), prompt });
  return streamText({ model: model(baseURL, "m"), prompt, onError: ignore }).consumeStream({ onError: ignore });
}

if (once) {
  await generateText({ model: model(`${url}/v1`, cases[0], { headers: JSON.parse(headers) }), prompt }).catch(ignore);
} else {
  const asked = cases.flatMap((name) =>
    Object.entries({ "openai-node": openaiNode, "ai-sdk": aiSdk }).map(([sdk, ask]) =>
      ask(`${url}/${sdk}/${name}/v1`, name.startsWith("200")).catch(ignore),
    ),
  );
  await Promise.all(asked);
}
