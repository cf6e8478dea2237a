"""A port here in front of a server, and whatever a network does to what passes through it; needs no rights.

It hurts connections, not packets: what it drops it holds back until it heals, as TCP would send it again then.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any

CHUNK_BYTES = 8 * 1024
DELAY_S = 0.1  # each way: an answer comes 200 ms later
NARROW_BYTES_S = 1_000_000 / 8
LOSS = 0.05
SENT_AGAIN_S = (0.2, 0.4)  # what a lost packet costs its connection


class Fault(Enum):
    """What a network can do to a link."""

    DROPPED = auto()
    DEAF = auto()  # the server hears nothing, but what it says arrives
    MUTE = auto()  # the server hears all, but nothing it says arrives
    RESET = auto()
    SLOW = auto()  # +200 ms
    NARROW = auto()  # 1 Mbit/s
    LOSSY = auto()  # 5 %


TO_SERVER, FROM_SERVER = range(2)
HOLDING = {
    Fault.DROPPED: {TO_SERVER, FROM_SERVER},
    Fault.DEAF: {TO_SERVER},
    Fault.MUTE: {FROM_SERVER},
}


class Relay:
    """One link; `port` is known from the beginning, so that a broker can be told to advertise it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._server_port = 0
        self._fault: Fault | None = None
        self._healed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"relay {self.port}")
        self._thread.start()

    def open(self, server_port: int) -> None:
        """Begin to relay."""
        self._server_port = server_port
        self._run(asyncio.start_server(self._accept, sock=self._listening))

    def hurt(self, fault: Fault) -> None:
        self._run(self._change(fault))

    def heal(self) -> None:
        self._run(self._change(None))

    def close(self) -> None:
        """Hang up on everybody."""
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listening.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _change(self, fault: Fault | None) -> None:
        self._fault = fault
        if fault is Fault.RESET:
            for writer in list(self._open):
                _reset(writer)
        if fault is None:
            self._healed.set()
        else:
            self._healed.clear()

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault is Fault.RESET:
            _reset(writer)
            return
        self._open.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            _reset(writer)
            self._open.discard(writer)
            return
        self._open.add(server_writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, server_writer, TO_SERVER))
                tasks.create_task(self._pass(server_reader, writer, FROM_SERVER))
        except* OSError:
            pass
        finally:
            for end in (writer, server_writer):
                self._open.discard(end)
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        """Read and send on, each when it is due, until one side ends."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def send() -> None:
            while True:
                at, chunk = await due.get()
                await asyncio.sleep(at - self._loop.time())
                while direction in HOLDING.get(self._fault, ()):  # type: ignore[arg-type]
                    await self._healed.wait()
                if self._fault is Fault.NARROW:
                    await asyncio.sleep(len(chunk) / NARROW_BYTES_S)
                if not chunk:
                    writer.close()
                    return
                writer.write(chunk)
                await writer.drain()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            chunk = b"?"
            while chunk:
                chunk = await reader.read(CHUNK_BYTES)
                await due.put((self._loop.time() + self._later_s(), chunk))

    def _later_s(self) -> float:
        if self._fault is Fault.SLOW:
            return DELAY_S
        if self._fault is Fault.LOSSY and random.random() < LOSS:
            return random.uniform(*SENT_AGAIN_S)
        return 0.0


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
