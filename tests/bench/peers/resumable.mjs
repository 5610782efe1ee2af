// resumable-stream as its manual shows it, on node's own HTTP server: POST /v1/… asks the provider and answers, POST
// /start/ID is the same under a name, GET /sub/ID follows along.  Usage: resumable.mjs PORT PROVIDER_URL
import http from 'node:http';
import { createResumableStreamContext } from 'resumable-stream';

const [port, provider] = process.argv.slice(2);
const context = createResumableStreamContext({ waitUntil: null });

async function send(stream, response) {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.flushHeaders();
  const reader = stream.getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    if (!response.write(value)) await new Promise((resolve) => response.once('drain', resolve));
  }
  response.end();
}

async function answer(request, response) {
  const [, verb, id] = request.url.split('/');
  if (request.method === 'GET') {
    const stream = await context.resumeExistingStream(id);
    if (stream) return send(stream, response);
    response.writeHead(422);
    return response.end();
  }
  let body = '';
  for await (const piece of request) body += piece;
  const asked = await fetch(`${provider}/chat/completions`, { method: 'POST', body, headers: { 'content-type': 'application/json' } });
  const name = verb === 'start' ? id : crypto.randomUUID();
  await send(await context.createNewResumableStream(name, () => asked.body.pipeThrough(new TextDecoderStream())), response);
}

http
  .createServer((request, response) => answer(request, response).catch((error) => (console.error(error), response.destroy())))
  .listen({ port: +port, host: '127.0.0.1', backlog: 8192 });
