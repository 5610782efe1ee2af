"""A stand-in that stops listening forgets nobody whom it had accepted."""

import asyncio
import gc
import socket
import warnings

import pytest

from tests.harness.loopback import stop_listening


@pytest.mark.parametrize("turns", range(7))
async def test_whoever_was_being_accepted_is_served(turns: int) -> None:
    served: asyncio.Queue[bytes] = asyncio.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what others have left warns elsewhere

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.put_nowait(await reader.read())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_listening(server)
        if accepted := turns > 1:  # in the first turn it is seen, in the second it is accepted
            client.sendall(b"here")
    gc.collect()  # a socket that nobody closed warns here, and a warning is a failure
    if accepted:
        assert await asyncio.wait_for(served.get(), 60) == b"here"
