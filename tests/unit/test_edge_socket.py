"""A WebSocket's bytes, with a clock of ours: who did not answer, and who was not read."""

import asyncio
import base64
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from drm_ingest.edge.limits import Limits
from drm_ingest.edge.socket import Socket
from drm_ingest.edge.take import Take
from drm_ingest.settings import Settings

SETTINGS = Settings(websocket_ping_interval_s=20, websocket_ping_timeout_s=20)
UPGRADE = (
    "GET /v1/events HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(b'0123456789abcdef').decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()
TEXT, PONG = b"\x81\x85\0\0\0\0hello", b"\x8a\x84\0\0\0\0"


class Client(asyncio.Transport):
    """Who is at the other end: what they were sent, and whether they are read from."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = b""
        self.is_read = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.heard += data

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


class Clock:
    """The time of an event loop that nobody runs, and what it was to call when."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = (self.now + delay_s, callback)
        self.timers.append(timer)
        return cast("asyncio.TimerHandle", SimpleNamespace(cancel=lambda: self.timers.remove(timer)))

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()

    def wait(self, seconds: float) -> None:
        """Let time pass, and call what is due meanwhile."""
        until = self.now + seconds
        while due := sorted((timer for timer in self.timers if timer[0] <= until), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = until


class Opened:
    """A WebSocket whose application asks for a message when it is told to."""

    def __init__(self, socket: Socket, client: Client, clock: Clock, ask: asyncio.Queue[None]) -> None:
        self.socket, self.client, self.clock, self._ask = socket, client, clock, ask

    async def ask(self) -> None:
        """Let the application ask for its next message."""
        self._ask.put_nowait(None)
        await settled()

    async def say(self) -> None:
        """Let the client send a message; the application has it, if it has asked for one."""
        self.socket.data_received(TEXT)
        await settled()

    def pong(self) -> None:
        """Answer the ping that the client has heard."""
        self.socket.data_received(PONG + (self.socket.pending_ping_payload or b""))

    @property
    def closed(self) -> bool:
        return b"no pong within 20 s" in self.client.heard


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def opened() -> Opened:
    ask: asyncio.Queue[None] = asyncio.Queue()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await ask.get()
            if (await receive())["type"] == "websocket.disconnect":
                return

    limits, clock, client = Limits(SETTINGS), Clock(), Client()
    config = Config(application, lifespan="off", log_level="critical", ws_ping_interval=20, ws_ping_timeout=20)
    config.load()
    config.loaded_app = application
    socket = Socket(cast("Take", SimpleNamespace(limits=limits, settings=SETTINGS)), config, ServerState(), {})
    socket.connection_made(client)
    socket.data_received(UPGRADE)
    await settled()
    assert socket.handshake_complete
    socket.stop_keepalive()
    socket.loop = cast("asyncio.AbstractEventLoop", clock)
    socket.start_keepalive()
    made = Opened(socket, client, clock, ask)
    await made.ask()
    return made


async def test_who_does_not_answer_a_ping_is_closed() -> None:
    it = await opened()
    it.clock.wait(39)
    assert not it.closed
    it.clock.wait(2)
    assert it.closed


async def test_who_answers_each_ping_stays() -> None:
    it = await opened()
    for _ in range(5):
        it.clock.wait(21)
        it.pong()
    assert not it.closed


async def test_of_the_time_for_a_pong_only_that_counts_in_which_we_read() -> None:
    """It may be behind messages that the application does not ask for."""
    it = await opened()
    it.clock.wait(21)  # the ping is on its way
    for _ in range(5):
        await it.say()
        assert not it.client.is_read
        it.clock.wait(18)
        await it.ask()
        assert it.client.is_read
        it.clock.wait(2)
    assert not it.closed
    it.pong()
    it.clock.wait(15)
    assert not it.closed


async def test_who_sends_on_but_never_answers_a_ping_is_closed() -> None:
    it = await opened()
    it.clock.wait(21)
    for _ in range(30):
        it.clock.wait(1)
        await it.say()
        await it.ask()
    assert it.closed
