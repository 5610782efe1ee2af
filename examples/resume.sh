#!/bin/sh
# Leave an answer after three events and come back for the rest, with curl and sed.
#
#     sh examples/resume.sh
set -eu

BASE=${STREAMSPOOL_URL:-http://127.0.0.1:8000}
AUTHORIZATION="Authorization: Bearer ${STREAMSPOOL_API_KEY:-any}"
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

# -N: no buffering. `sed 9q` hangs up after three events of three lines (id, data, blank).
curl -sN -D "$FOLDER/headers" "$BASE/v1/chat/completions" -H "$AUTHORIZATION" \
  -H 'Content-Type: application/json' -H 'X-Stream-Ids: 1' \
  -d '{"model": "fake/lorem?tokens=20&rate=40", "stream": true, "messages": [{"role": "user", "content": "Go"}]}' \
  2>/dev/null | sed 9q >"$FOLDER/begun" || true

ID=$(sed -n 's/^x-stream-id: *//p' "$FOLDER/headers" | tr -d '\r')
LAST=$(sed -n 's/^id: //p' "$FOLDER/begun" | tail -n 1)
echo "left $ID at $LAST"

curl -sN "$BASE/v1/streams/$ID" -H "$AUTHORIZATION" -H "Last-Event-ID: $LAST" >"$FOLDER/rest"
echo "came back at $(sed -n 's/^id: //p' "$FOLDER/rest" | head -n 1), and read to $(grep '^data: ' "$FOLDER/rest" | tail -n 1)"
