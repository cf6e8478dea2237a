"""Events over a WebSocket: windowed, acknowledged by the client's own sequence number, resumable.

    client                                         server
    {"hello": {"key": …, "sent_at": …}}  ─────▶    who, and how far the clock is off; optional with a header
                                         ◀─────    {"window": 32}    messages that may be unacknowledged
    {"seq": 7, "events": […]}            ─────▶    taken; the next is read at once
                                         ◀─────    {"ack": 7, "accepted": 3, "results": []}    durable, or refused
                                         ◀─────    {"retry": 7, "after_ms": 500}               in place of a 503
                                         ◀─────    {"refused": 7, "code": …, "detail": …}      no retry helps
                                         ◀─────    {"goaway": {"reconnect_after_ms": …}}       then 1012

Acks come in the order in which Kafka acknowledges. A client that comes back sends again what was not acknowledged.
With the subprotocol `cloudevents.json` each message is one event, and acknowledged by its id.
"""

import asyncio
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct
from starlette.websockets import WebSocket, WebSocketDisconnect

from drm_ingest.edge.answer import Answer
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.take import Take
from drm_ingest.event import parse_time

Who = Callable[[], Credential | None]
"""Looks up whose connection it is."""

CLOUDEVENTS = "cloudevents.json"
SEQ_MAX = 2**53 - 1  # what JSON numbers hold everywhere
CLOSE_REASON_BYTES_MAX = 123  # RFC 6455, 5.5
RECONNECT_AFTER_MS_MAX = 2000

UNSUPPORTED, NOT_JSON, POLICY, RESTARTING, TRY_LATER = 1003, 1007, 1008, 1012, 1013


class Hello(Struct):
    key: str | None = None
    sent_at: str | None = None


class Message(Struct):
    """What a client sends; `hello` only first."""

    hello: Hello | None = None
    seq: int | None = None
    events: list[Raw] | None = None


class Single(Struct):
    """An event sent alone, known by its id; or the hello before it."""

    hello: Hello | None = None
    id: str | None = None


_MESSAGE = msgspec.json.Decoder(Message)
_SINGLE = msgspec.json.Decoder(Single)
_Sent = TypeVar("_Sent", Message, Single)


# Every escape, so that two backslashes are told from the begin of one; in the group, half a surrogate pair.
_escapes = re.compile(
    rb"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|u([dD][89a-fA-F][\da-fA-F]{2})|.)", re.DOTALL
)


def _decode(decoder: msgspec.json.Decoder[_Sent], raw: bytes) -> _Sent:
    try:
        try:
            return decoder.decode(raw)
        except msgspec.DecodeError:
            # A lone surrogate is the fault of one event, not of the message: with a NUL for it, the event is refused.
            spoilt = _escapes.sub(lambda escape: rb"\u0000" if escape[1] else escape[0], raw)
            if spoilt == raw:
                raise
            return decoder.decode(spoilt)
    except msgspec.ValidationError as error:
        raise Closing(UNSUPPORTED, f"not a message of this protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Closing(NOT_JSON, f"not JSON: {error}") from None


class Closing(Exception):
    """The connection ends, with a code (RFC 6455, 7.4.1, and its registry) and a reason for the sender."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")


class Sessions:
    """The open WebSockets of a process."""

    def __init__(self, take: Take, ready: Callable[[], str | None]) -> None:
        """`ready` returns None, or why no events can be taken now."""
        self._take = take
        self._ready = ready
        self._open: set[Session] = set()

    async def serve(self, socket: WebSocket) -> None:
        """Serve one WebSocket to its end."""
        session = Session(self._take, socket)
        self._open.add(session)
        try:
            await session.run(self._ready())
        finally:
            self._open.discard(session)
            session.gone.set()

    async def drain(self) -> None:
        """Take no new message, acknowledge those that were taken, tell the clients to come back, and close."""
        for session in self._open:
            session.go_away()
        await asyncio.gather(*(session.gone.wait() for session in self._open))


class Session:
    """One WebSocket."""

    def __init__(self, take: Take, socket: WebSocket) -> None:
        self._take = take
        self._socket = socket
        self._headers = {name.lower(): value for name, value in socket.headers.raw}
        self._single = CLOUDEVENTS in socket.scope.get("subprotocols", ())
        self._hello_may_come = True
        self._clock_offset_ms = 0
        self._window = take.settings.websocket_window_messages
        self._sender: str | None = None
        self._unacknowledged = 0  # taken, and their acknowledgement not yet sent
        self._outbox: asyncio.Queue[tuple[bytes, int] | Closing] = asyncio.Queue()  # bounded by the window
        self._leaving = False
        self.gone = asyncio.Event()

    async def run(self, not_ready: str | None) -> None:
        """Serve until either side closes."""
        sender = asyncio.create_task(self._send())
        try:
            await self._socket.accept(CLOUDEVENTS if self._single else None)
            if not_ready:
                raise Closing(TRY_LATER, not_ready)
            who = await self._greet()
            self._sender = self._known(who).sender
            self._put({"window": self._window})
            while True:
                await self._take_next(who)
        except Closing as closing:
            self._take.tell.closed(closing.code, str(closing), client=self._client, sender=self._sender)
            self._leave(closing)
            with suppress(WebSocketDisconnect):
                while True:  # until the client closes too, or uvicorn's time for that is over
                    await self._receive()
        except WebSocketDisconnect:
            pass
        finally:
            self._leaving = True
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    def go_away(self) -> None:
        """Take no more messages; close when those that were taken are acknowledged."""
        if not self._leaving:
            self._leaving = True
            self._put({"goaway": {"reconnect_after_ms": 100 + secrets.randbelow(RECONNECT_AFTER_MS_MAX)}})
            if not self._unacknowledged:
                self._outbox.put_nowait(Closing(RESTARTING, "restarting"))

    # -- in

    async def _greet(self) -> Who:
        """Learn who it is, from a header or from a hello."""
        credentials = self._take.credentials
        if (authorization := self._headers.get(b"authorization")) is not None:
            who: Who = partial(credentials.find, authorization)
        else:
            seconds = self._take.settings.request_header_timeout_s
            try:
                async with asyncio.timeout(seconds):
                    hello = _decode(_SINGLE, await self._receive()).hello
            except TimeoutError:
                raise Closing(POLICY, f"unauthenticated: no hello within {seconds:g} s") from None
            if hello is None:
                raise Closing(POLICY, "unauthenticated: send a hello with your key first, or an Authorization header")
            self._hear(hello)
            who = partial(credentials.find_key, hello.key or "")
        return who

    def _known(self, who: Who) -> Credential:
        """Return whose key it is now: one that is revoked or expires while the connection lasts counts no more."""
        credential = who()
        if credential is None and not self._take.credentials.ready:
            raise Closing(TRY_LATER, "not_ready: credentials are not loaded yet")
        if credential is None:
            raise Closing(POLICY, "unauthenticated: the key is unknown, revoked or expired")
        return credential

    def _hear(self, hello: Hello) -> None:
        if not self._hello_may_come:
            raise Closing(UNSUPPORTED, "hello comes first, and once")
        self._hello_may_come = False
        if hello.sent_at is not None:
            try:
                self._clock_offset_ms = self._take.clock_offset_ms_of(parse_time(hello.sent_at))
            except ValueError as error:
                raise Closing(UNSUPPORTED, f"sent_at {error}") from None

    async def _take_next(self, who: Who) -> None:
        """Take one message; its acknowledgement follows by itself."""
        raw = await self._receive()
        if self._leaving:
            return  # never acknowledged, so it will come again
        message = _decode(_SINGLE, raw) if self._single else _decode(_MESSAGE, raw)
        if message.hello is not None:
            self._hear(message.hello)
            return
        self._hello_may_come = False
        name: int | str | None
        events: list[Raw]
        if isinstance(message, Single):
            name, events = message.id, [Raw(raw)]
        elif message.seq is None or message.events is None or not 0 <= message.seq <= SEQ_MAX:
            raise Closing(UNSUPPORTED, 'send {"seq": a number from 0 to 2^53-1, "events": [...]}')
        else:
            name, events = message.seq, message.events
        if self._unacknowledged >= self._window:
            raise Closing(POLICY, f"more than {self._window} unacknowledged messages; see window")
        credential = self._known(who)
        self._unacknowledged += 1
        request_id = self._take.request_id({})
        reply = partial(self._reply, name, len(raw))
        self._take.events(self._headers, events, credential, self._clock_offset_ms, request_id, reply)

    async def _receive(self) -> bytes:
        """Return the next message, text or binary alike; raises WebSocketDisconnect."""
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005))
        text = event.get("text")
        return text.encode() if text is not None else bytes(event["bytes"])

    # -- out

    @property
    def _client(self) -> str | None:
        client = self._socket.client
        return client.host if client else None

    def _reply(self, name: int | str | None, message_bytes: int, answer: Answer) -> None:
        """Queue what the client is told of one message, by its name."""
        admitted, refusal = answer.admitted, answer.refusal
        if admitted is None or admitted.results:
            self._take.tell.answered(answer, client=self._client, sender=self._sender, body_bytes=message_bytes)
        if admitted is not None:
            if name is None and admitted.results:
                name = admitted.results[0].id  # the id it was given
            self._put({"ack": name, "accepted": admitted.accepted, "results": admitted.results}, 1)
        elif refusal is not None and refusal.problem.retry:
            self._put({"retry": name, "after_ms": 1000 * (refusal.retry_after_s or 1)}, 1)
        elif refusal is not None:
            told = {"code": refusal.problem.code, "detail": refusal.detail, "request_id": answer.request_id}
            self._put({"refused": name, **told}, 1)

    def _put(self, message: dict[str, object], acknowledges: int = 0) -> None:
        self._outbox.put_nowait((msgspec.json.encode(message), acknowledges))

    def _leave(self, closing: Closing) -> None:
        closing.__traceback__ = closing.__context__ = None  # its frames hold the message, as long as the client stays
        self._leaving = True
        self._outbox.put_nowait(closing)

    async def _send(self) -> None:
        """Send what is queued, in order, as fast as the client reads."""
        with suppress(WebSocketDisconnect, RuntimeError):  # uvicorn's words for a socket that has closed meanwhile
            while True:
                item = await self._outbox.get()
                if isinstance(item, Closing):
                    await self._socket.close(item.code, item.reason)
                    return
                message, acknowledges = item
                await self._socket.send_text(message.decode())
                self._unacknowledged -= acknowledges
                if acknowledges and self._leaving and not self._unacknowledged:
                    self._outbox.put_nowait(Closing(RESTARTING, "restarting"))
