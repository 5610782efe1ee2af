"""All that a tenant has, looked at through the public routes: sessions, lists, batches, files, usage.

Hidden here: that each of them has something in Redis that is its generations', and something that is the installation's,
which may lie elsewhere.
"""

from __future__ import annotations

import json

import httpx

from tests.harness.processes import wait_until

MODEL = "fake/lorem?tokens=7"
"""Asked by nothing else, so that its usage is known."""


def look_at_all(url: str) -> None:
    """Of a server where this was not done before."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for number in range(3):
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"turn {number}"}],
                "session_id": "s",
            }
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        session = http.get("/v1/sessions/s").json()
        assert (session["turns"], session["open"]) == (3, [])
        said = [message["content"] for message in http.get("/v1/sessions/s/messages").json()["data"]]
        assert said[::2] == ["turn 0", "turn 1", "turn 2"]
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "once"}]}
        ids = {
            http.post("/v1/chat/completions", json=asked, headers={"idempotency-key": "k"}).headers["x-stream-id"]
            for _ in range(3)
        }
        assert len(ids) == 1
        lines = [
            json.dumps({"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": asked})
            for at in range(40)
        ]
        upload = {"file": ("lines.jsonl", "\n".join(lines).encode())}
        file_id = http.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = http.post("/v1/batches", json=wanted).json()["id"]
        batch = wait_until(
            lambda: (found := http.get(f"/v1/batches/{batch_id}").json())["status"] == "completed" and found,
            100,
            "a batch",
        )
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        output = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        assert sorted(int(json.loads(line)["custom_id"]) for line in output) == list(range(40))
        listed = http.get("/v1/streams", params={"limit": 100}).json()["data"]
        assert [one["created_at"] for one in listed] == sorted((one["created_at"] for one in listed), reverse=True)
        (once,) = ids
        assert once in {one["id"] for one in listed}
        assert http.delete(f"/v1/streams/{once}").status_code < 300
        assert http.get(f"/v1/streams/{once}", headers={"accept": "application/json"}).status_code == 404
        wait_until(
            lambda: sum(row["requests"] for row in http.get("/v1/usage").json()["data"] if row["model"] == MODEL) == 44,
            60,
            "all is settled",
        )
