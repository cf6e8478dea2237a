"""A WebSocket client for tests of the edge."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.integration.edge import KEY, Edge
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


@contextlib.asynccontextmanager
async def a_socket(
    edge: Edge, key: str | None = KEY, subprotocol: str | None = None, **options: Any
) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    subprotocols = [Subprotocol(subprotocol)] if subprotocol else None
    url = edge.url.replace("http", "ws") + "/v1/events"
    async with connect(url, additional_headers=headers, subprotocols=subprotocols, **options) as socket:
        yield socket


async def told(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        message = json.loads(await socket.recv())
    assert isinstance(message, dict)
    return message


async def tell(socket: ClientConnection, message: Any) -> None:
    await socket.send(json.dumps(message))


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """Wait for the end; return its code and reason."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(20):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""
