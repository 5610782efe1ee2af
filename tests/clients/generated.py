"""A chat and a batch by a client that openapi-python-client has made of /openapi.json: package `made`, on PYTHONPATH.

Called with the URL of a server and a key; prints what came as JSON.
"""

import json
import sys
import time
from io import BytesIO

from made import AuthenticatedClient  # type: ignore[import-not-found]
from made.api.batches import create_batch, retrieve_batch  # type: ignore[import-not-found]
from made.api.chat import create_chat_completion, get_chat_completion  # type: ignore[import-not-found]
from made.api.files import create_file, download_file  # type: ignore[import-not-found]
from made.models import (  # type: ignore[import-not-found]
    CreateBatchRequest,
    CreateChatCompletionRequest,
    CreateFileRequest,
    CreateFileRequestPurpose,
    ErrorResponse,
)
from made.types import File  # type: ignore[import-not-found]

url, key = sys.argv[1:]
ASKED = {"model": "fake/echo", "messages": [{"role": "user", "content": "one two"}]}

with AuthenticatedClient(base_url=url, token=key) as client:
    answer = create_chat_completion.sync(client=client, body=CreateChatCompletionRequest.from_dict(ASKED))
    again = get_chat_completion.sync(answer.id, client=client)
    refused = get_chat_completion.sync("chatcmpl-none", client=client)
    assert isinstance(refused, ErrorResponse)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": ASKED}
    lines = File(BytesIO(json.dumps(line).encode() + b"\n"), file_name="lines.jsonl")
    given = CreateFileRequest(file=lines, purpose=CreateFileRequestPurpose.BATCH)
    file = create_file.sync(client=client, body=given)
    asked = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = create_batch.sync(client=client, body=CreateBatchRequest.from_dict(asked))
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.05)
        batch = retrieve_batch.sync(batch.id, client=client)
    output = download_file.sync_detailed(batch.output_file_id, client=client).content

print(
    json.dumps(
        {
            "said": [answer.choices[0].message.content, again.choices[0].message.content],
            "refused": refused.error.code,
            "batch": [batch.status, batch.request_counts.completed],
            "line": json.loads(output)["response"]["body"]["choices"][0]["message"]["content"],
        }
    )
)
