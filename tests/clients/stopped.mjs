// stopped.py in JavaScript.

import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const say = (view, what) => console.log(JSON.stringify({ view, ...what }));

async function* chat() {
  const messages = [{ role: "user", content: "Hello" }];
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    yield chunk.choices[0].delta.content ?? "";
  }
}

async function* responses() {
  for await (const event of await client.responses.create({ model, input: "Hello", stream: true })) {
    if (event.type === "response.output_text.delta") yield event.delta;
  }
}

async function watch(view, pieces) {
  let text = "";
  try {
    for await (const piece of pieces) say(view, { text: (text += piece) });
    say(view, { raised: null });
  } catch (error) {
    say(view, { raised: error.constructor.name, code: error.code });
  }
}

await Promise.all([watch("chat", chat()), watch("responses", responses())]);
