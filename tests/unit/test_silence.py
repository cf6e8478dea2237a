"""A connection whose other end falls silent ends, and one that has ended is left alone."""

import asyncio
import socket

import pytest
import uvloop

from drm_ingest.silence import end_silence


async def options_of_a_connection(*, ended: bool) -> tuple[int, int]:
    """Return SO_KEEPALIVE and TCP_USER_TIMEOUT (in ms) of a connection, its silence bounded to 7 s."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    _, ours = await asyncio.open_connection(*server.sockets[0].getsockname())
    theirs = await accepted
    own = ours.get_extra_info("socket")
    if ended:
        ours.transport.abort()
        await asyncio.sleep(0.01)
    end_silence(ours.transport, 7)
    found = (0, 0)
    if not ended:
        found = (
            own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
    for writer in (ours, theirs):
        writer.transport.abort()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_a_connection_ends_when_the_other_end_acknowledges_nothing(run: object) -> None:
    assert run(options_of_a_connection(ended=False)) == (1, 7000)  # type: ignore[operator]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_that_has_ended_is_left_alone(run: object) -> None:
    run(options_of_a_connection(ended=True))  # type: ignore[operator]
