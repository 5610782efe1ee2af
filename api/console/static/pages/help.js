// Help: the shortcuts, and where each page has its numbers from.
import { html } from "../lib/dom.js";
import { asCurl, origin, root } from "../lib/api.js";
import { Card, Code } from "../ui/parts.js";
import { Shortcuts } from "../ui/shell.js";

const ROUTES = [
  ["Live", "/v1/streams?status=queued,in_progress&limit=100"],
  ["Live, Operations", "/v1/queue"],
  ["Requests", "/v1/streams?limit=100"],
  ["Request", "/v1/streams/ID"],
  ["Batches", "/v1/batches?limit=100"],
  ["Sessions", "/v1/sessions?limit=100"],
  ["Usage", "/v1/usage?bucket=day&group_by=model"],
  ["Operations", "/v1/workers"],
  ["Operations, Server", "/v1/redis"],
];

export const Help = () => html`
  <div class="head"><h1>Help</h1></div>
  <div class="grid2">
    <${Card} title="Keys"><${Shortcuts} /><//>
    <div class="stack">
      <${Card} title="A client for this server"><p class="soft">Any client of OpenAI's API works unchanged. Its base URL here:</p><${Code} text=${`${origin}/v1`} />
        <p><a href=${`${root}/docs`}>All routes, to be read</a> · <a href=${`${root}/openapi.json`}>the same for programs</a></p><//>
      <${Card} title="Where the numbers are from"><p class="soft">The console asks nothing that your programs could not ask.</p>
        <div class="stack">${ROUTES.map(([page, path]) => html`<div><h3>${page}</h3><${Code} text=${asCurl(path)} /></div>`)}</div><//>
    </div>
  </div>`;
