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
With the subprotocol `cloudevents.json` each message is one event, acknowledged by its id and its number.
"""

import asyncio
import math
import secrets
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Raw
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from drm_ingest.edge.answer import Answer
from drm_ingest.edge.clock import stated_time
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.message import (
    CLOUDEVENTS,
    POLICY,
    RESTARTING,
    TRY_LATER,
    UNSUPPORTED,
    Closing,
    Hello,
    Single,
    message_of,
    single_of,
)
from drm_ingest.edge.quotas import SENDER_QUOTAS
from drm_ingest.edge.socket import AUTHENTICATED, READ_BY_CLIENT
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal
from drm_ingest.event import parse_time
from drm_ingest.settings import KiB

RECONNECT_AFTER_MS_MIN = 100
_UNREAD_BYTES_MAX = 128 * KiB  # of answers, above which no message is taken until the client has read some
_UNACKNOWLEDGED_EVENTS_MAX = 1_000  # each may have a result; no message is taken beyond until Kafka has answered
_PAUSE_MAX_S = 1.0  # without reading from a sender whose quota is used up, whatever it sends meanwhile


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
        self._authorization = b""
        self._messages = 0
        self._one_device = False
        self._pause_s = 0.0  # not to be read from: a quota is used up that all its messages need
        self._unacknowledged = 0  # taken, and their acknowledgement not yet sent
        self._unacknowledged_events = 0
        self._outbox: asyncio.Queue[tuple[bytes, int | None] | Closing] = asyncio.Queue()  # bounded by the window
        self._outbox_bytes = 0
        self._less_waits = asyncio.Event()
        self._sender_ended = False
        self._long = 0  # the last message that was judged in slices
        self._long_answered = asyncio.Event()
        self._long_answered.set()
        self._closing: Closing | None = None  # once those that were taken are acknowledged
        self.gone = asyncio.Event()

    async def run(self, not_ready: str | None) -> None:
        """Serve until either side closes."""
        if not not_ready and await self._refused_by_header():
            return
        sender = asyncio.create_task(self._send())
        try:
            await self._socket.accept(CLOUDEVENTS if self._single else None)
            if not_ready:
                raise Closing(TRY_LATER, not_ready)
            self._sender = (await self._greet()).sender
            if (authenticated := self._socket.scope.get("extensions", {}).get(AUTHENTICATED)) is not None:
                authenticated()  # another server than ours has bounds of its own
            self._put({"window": self._window})
            while True:
                await self._take_next()
        except Closing as closing:
            self._take.tell.closed(closing.code, str(closing), client=self._client, sender=self._sender)
            closing.__traceback__ = closing.__context__ = None  # its frames hold the message
            self._leave(closing)
            with suppress(WebSocketDisconnect):
                while True:  # until the client closes too, or uvicorn's time for that is over
                    await self._receive()
        except WebSocketDisconnect:
            pass
        finally:
            self._closing = self._closing or Closing(RESTARTING, "gone")
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender
            self._sender_ended = True
            self._release(self._outbox_bytes)

    def go_away(self) -> None:
        """Take no more messages; close when those that were taken are acknowledged."""
        if self._closing is None:
            # Each another moment: all at once, they would be the next bad day of whoever takes them.
            spread_ms = math.ceil(self._take.settings.websocket_reconnect_spread_s * 1000)
            self._put({"goaway": {"reconnect_after_ms": RECONNECT_AFTER_MS_MIN + secrets.randbelow(spread_ms)}})
            self._leave(Closing(RESTARTING, "restarting"))

    def close_unless_known(self) -> None:
        """Close, if whoever it is may not send any more."""
        if self._sender is None or self._closing is not None:
            return  # not greeted yet, or leaving anyway
        try:
            self._known()
        except Closing as closing:
            if closing.code == POLICY:
                self._take.tell.closed(closing.code, str(closing), client=self._client, sender=self._sender)
                self._leave(closing)

    # -- in

    async def _refused_by_header(self) -> bool:
        """Answer the upgrade itself with 401 or 403 where a header names a key that may not send."""
        if b"authorization" not in self._headers or not self._take.identify.credentials.ready:
            return False
        try:
            self._take.enter(self._headers, lambda: self._client)
        except Refusal as refusal:
            if refusal.problem.status == 503:
                return False
            answer = self._take.refuse(refusal, self._take.request_id(self._headers))
            self._take.tell.answered(answer, client=self._client, authorization=self._headers[b"authorization"])
            content = answer.body()
            headers = {name.decode(): value.decode() for name, value in answer.headers(content)}
            await self._socket.send_denial_response(Response(content, answer.status, headers))
            return True
        return False

    async def _greet(self) -> Credential:
        """Learn who it is, from a header or from a hello."""
        if (authorization := self._headers.get(b"authorization")) is not None:
            stated_at = stated_time(self._headers.get(b"date"))
        else:
            seconds = self._take.settings.request_header_timeout_s
            try:
                async with asyncio.timeout(seconds):
                    hello = single_of(await self._receive()).hello
            except TimeoutError:
                raise Closing(POLICY, f"unauthenticated: no hello within {seconds:g} s") from None
            if hello is None:
                raise Closing(POLICY, "unauthenticated: send a hello with your key first, or an Authorization header")
            self._hear(hello)
            authorization = f"Bearer {hello.key or ''}".encode("latin-1", "replace")
            stated_at = None if hello.sent_at is None else parse_time(hello.sent_at).timestamp()
        self._authorization = authorization
        try:
            return self._take.identify.identify(authorization, stated_at, self._client)
        except Refusal as refusal:
            raise _closing(refusal) from None

    def _known(self) -> Credential:
        """Return whose key it is now: one that is revoked or expires while the connection lasts counts no more.

        Raises:
            Closing: it counts no more.
        """
        try:
            return self._take.identify.still(self._authorization)
        except Refusal as refusal:
            raise _closing(refusal) from None

    def _hear(self, hello: Hello) -> None:
        if not self._hello_may_come:
            raise Closing(UNSUPPORTED, "hello comes first, and once")
        self._hello_may_come = False
        if hello.sent_at is not None:
            try:
                self._clock_offset_ms = self._take.clock_offset_ms_of(parse_time(hello.sent_at))
            except ValueError as error:
                raise Closing(UNSUPPORTED, f"sent_at {error}") from None

    async def _take_next(self) -> None:
        """Take one message; its acknowledgement follows by itself."""
        await self._long_answered.wait()
        while self._too_much_waits() and not self._sender_ended:
            self._less_waits.clear()  # results may be larger than what they are about
            await self._less_waits.wait()
        if self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            await asyncio.sleep(pause_s)
        raw = await self._receive()
        if self._closing is not None:
            return  # never acknowledged, so it will come again
        message = single_of(raw) if self._single else message_of(raw)
        if message.hello is not None:
            self._hear(message.hello)
            return
        self._hello_may_come = False
        self._messages += 1
        name: int | str | None
        number: dict[str, object] = {}
        if isinstance(message, Single):
            name, events, number = message.name, [Raw(raw)], {"message": self._messages}
        else:
            name, events = message.seq, message.events or []
        if self._unacknowledged >= self._window:
            raise Closing(POLICY, f"more than {self._window} unacknowledged messages; see window")
        credential = self._known()
        self._one_device = credential.device is not None
        self._unacknowledged += 1
        self._unacknowledged_events += len(events)
        request_id = self._take.request_id({})
        reply = partial(self._reply, name, number, len(raw), self._messages, len(events))
        take = self._take.events
        if take(self._headers, events, len(raw), credential, self._clock_offset_ms, request_id, reply):
            self._long = self._messages  # the next waits for its answer: else the order of events would change
            self._long_answered.clear()

    def _too_much_waits(self) -> bool:
        return self._outbox_bytes > _UNREAD_BYTES_MAX or self._unacknowledged_events >= _UNACKNOWLEDGED_EVENTS_MAX

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

    def _reply(
        self,
        name: int | str | None,
        number: dict[str, object],
        message_bytes: int,
        message: int,
        events: int,
        answer: Answer,
    ) -> None:
        """Queue what the client is told of one message, by its name, and by its number where names may be missing."""
        admitted, refusal = answer.admitted, answer.refusal
        if message == self._long:
            self._long_answered.set()
        if admitted is None or admitted.results:
            self._take.tell.answered(answer, client=self._client, sender=self._sender, body_bytes=message_bytes)
        if admitted is not None:
            if name is None and admitted.results:
                name = admitted.results[0].id  # the id it was given
            self._put({"ack": name, **number, "accepted": admitted.accepted, "results": admitted.results}, events)
        elif refusal is not None and refusal.problem.retry:
            after_ms = 1000 * (refusal.retry_after_s or 1)
            if self._one_device or refusal.members.get("quota") in SENDER_QUOTAS:
                self._pause_s = min(_PAUSE_MAX_S, after_ms / 1000)
            limited = refusal.problem.code == "rate_limited"
            why = {"code": refusal.problem.code, "detail": refusal.detail, **refusal.members} if limited else {}
            self._put({"retry": name, **number, "after_ms": after_ms, **why}, events)
        elif refusal is not None:
            told = {"code": refusal.problem.code, "detail": refusal.detail, "request_id": answer.request_id}
            self._put({"refused": name, **number, **told}, events)

    def _put(self, message: dict[str, object], answered_events: int | None = None) -> None:
        """Queue what is sent to the client; where it answers a message, with how many events that had."""
        if self._sender_ended:
            return
        encoded = msgspec.json.encode(message)
        self._outbox_bytes += len(encoded)
        self._take.limits.body_bytes += len(encoded)
        self._outbox.put_nowait((encoded, answered_events))

    def _leave(self, closing: Closing) -> None:
        """Take no more messages; close when those that were taken are acknowledged, or could not be in time."""
        if self._closing is not None:
            return
        self._closing = closing
        if self._unacknowledged:
            seconds = self._take.settings.drain_timeout_s
            asyncio.get_running_loop().call_later(seconds, self._outbox.put_nowait, closing)
        else:
            self._outbox.put_nowait(closing)

    async def _send(self) -> None:
        """Send what is queued, in order, as fast as the client reads."""
        read_by_client = self._socket.scope.get("extensions", {}).get(READ_BY_CLIENT)
        try:
            with suppress(WebSocketDisconnect, RuntimeError):  # uvicorn's words for a socket that has closed meanwhile
                while True:
                    item = await self._outbox.get()
                    if isinstance(item, Closing):
                        await self._socket.close(item.code, item.reason)
                        break
                    message, answered_events = item
                    sent_bytes = len(message)
                    await self._socket.send_text(message.decode())
                    del message, item  # the transport has a copy
                    if answered_events is not None:
                        self._unacknowledged -= 1
                        self._unacknowledged_events -= answered_events
                        if self._closing is not None and not self._unacknowledged:
                            self._outbox.put_nowait(self._closing)
                    if read_by_client is not None:
                        await read_by_client()
                    self._release(sent_bytes)
        finally:
            self._sender_ended = True
            self._less_waits.set()

    def _release(self, sent_bytes: int) -> None:
        self._outbox_bytes -= sent_bytes
        self._take.limits.body_bytes -= sent_bytes
        self._less_waits.set()


def _closing(refusal: Refusal) -> Closing:
    """Return the close for a credential that is refused: the reason is short and begins with the code."""
    server_time = refusal.members.get("server_time")
    told = f"server_time {server_time}; {refusal.detail}" if server_time else refusal.detail
    return Closing(TRY_LATER if refusal.problem.retry else POLICY, f"{refusal.problem.code}: {told}")
