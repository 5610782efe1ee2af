#!/usr/bin/env bash
# Package: node 20.20.2 and node 24.21.0 (npm), their own fetch.
# Behaviour: a chunked body that ends without its last chunk, on a connection that was announced to close, is taken for
#   whole by Node 20: text() resolves with the half. Node 24 rejects, and so does Node 20 if the connection was to be kept.
# For us: for OpenAI-shaped viewers an end that is none is told by an error frame; a cut alone is not seen everywhere.
# Seen: fetch of a cut body: node 20 "half", node 24 TypeError; kept connection: TypeError, TypeError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --silent --no-audit --no-fund node20@npm:node@20.20.2 node24@npm:node@24.21.0 >/dev/null
cat >"$dir/cut.mjs" <<'JS'
import net from "node:net"

async function read(connection) {
  const server = net.createServer((socket) => {
    socket.on("error", () => {})
    socket.once("data", () => {
      const head = ["HTTP/1.1 200 OK", `Connection: ${connection}`, "Transfer-Encoding: chunked", "", ""].join("\r\n")
      socket.write(`${head}4\r\nhalf\r\n`, () => socket.end())
    })
  })
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening))
  try {
    return JSON.stringify(await (await fetch(`http://127.0.0.1:${server.address().port}/`)).text())
  } catch (error) {
    return error.name
  } finally {
    server.close()
  }
}
process.stdout.write(`${await read("close")} ${await read("keep-alive")}`)
JS
read -r closing20 kept20 <<<"$("$dir/node_modules/node20/bin/node" "$dir/cut.mjs")"
read -r closing24 kept24 <<<"$("$dir/node_modules/node24/bin/node" "$dir/cut.mjs")"
echo "fetch of a cut body: node 20 $closing20, node 24 $closing24; kept connection: $kept20, $kept24"
[[ "$closing20 $closing24 $kept20 $kept24" == '"half" TypeError TypeError TypeError' ]]
