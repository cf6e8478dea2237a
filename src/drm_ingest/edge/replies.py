"""The answers of a connection, sent in the order of its requests, whatever the order in which Kafka acknowledges."""

import asyncio
from collections import deque
from collections.abc import Callable

from uvicorn.server import ServerState

from drm_ingest.edge.answer import Answer, encode
from drm_ingest.edge.limits import Limits
from drm_ingest.edge.tell import Tell

TOO_MANY = 429
INSISTENT_PAUSE_S = 0.1
"""How long the second 429 in a row waits, and each after it: the sender meanwhile, and nobody else. A proxy gives a
connection that waits for an answer to no other sender, so those behind the same one are not held up."""
_CLOSE = b"connection: close\r\n"


class Exchange:
    """A request that was read, and its answer once there is one."""

    __slots__ = ("_replies", "alone", "answer", "authorization", "body_bytes", "header_lines", "keep_alive", "waited")

    def __init__(self, replies: "Replies", header_lines: bytes, keep_alive: bool) -> None:
        self._replies = replies
        self.header_lines = header_lines
        self.keep_alive = keep_alive
        self.answer: Answer | None = None
        self.alone = False
        """No other request of the connection is read before its answer: the order of events would change."""
        self.waited = False
        """Its 429 was held back long enough."""
        # For the log, should there be something to refuse:
        self.authorization: bytes | None = None
        self.body_bytes = 0

    def reply(self, answer: Answer) -> None:
        """Send the answer as soon as those before it are sent; does nothing once the connection is gone."""
        self.answer = answer
        if answer.admitted is None or answer.admitted.results:
            self._replies.tell(self, answer)
        self._replies.send()


class Replies:
    """What a connection still owes."""

    __slots__ = (
        "_limits", "_pause", "_sent", "_server_state", "_tell", "_transport", "any_sent", "last", "owed", "was_limited",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: Limits,
        server_state: ServerState,
        tell: Tell,
        sent: Callable[[bool], None],
    ) -> None:
        """`sent(closes)` is called after answers went out; `closes`: they said that they were the last."""
        self._transport = transport
        self._limits = limits
        self._server_state = server_state
        self._tell = tell
        self._sent = sent
        self.owed: deque[Exchange] = deque()
        self.last = False
        """Say with the last answer owed that the connection closes."""
        self.any_sent = False
        self.was_limited = False
        """The last answer was a 429."""
        self._pause: asyncio.TimerHandle | None = None

    def owe(self, header_lines: bytes, *, keep_alive: bool) -> Exchange:
        """Note that a request was read; `header_lines` go into its answer, with their line ends."""
        exchange = Exchange(self, header_lines, keep_alive)
        self.owed.append(exchange)
        return exchange

    def send(self) -> None:
        """Send every answer whose turn it is."""
        owed = self.owed
        while self._pause is None and owed and (answer := owed[0].answer) is not None:
            too_many = answer.status == TOO_MANY
            if too_many and self.was_limited and not owed[0].waited and not self.last:
                self._pause = asyncio.get_running_loop().call_later(INSISTENT_PAUSE_S, self._go_on)
                break
            self.was_limited = too_many
            exchange = owed.popleft()
            closes = not exchange.keep_alive or (self.last and not owed)
            lines = self._limits.date_line + exchange.header_lines
            self._transport.write(encode(answer, lines + _CLOSE if closes else lines))
            self._server_state.total_requests += 1
            if closes:
                owed.clear()
                self._sent(True)
                return
        self.any_sent = True
        self._sent(False)

    def _go_on(self) -> None:
        self._pause = None
        if self.owed:
            self.owed[0].waited = True
            self.send()

    def tell(self, exchange: Exchange, answer: Answer) -> None:
        """Log what the answer refuses."""
        self._tell.answered(
            answer,
            client=client_of(self._transport),
            authorization=exchange.authorization,
            body_bytes=exchange.body_bytes,
        )

    def forget(self) -> None:
        """The connection is gone: owe nothing, and hold it no longer."""
        self.owed.clear()
        self._sent = _to_nobody
        if self._pause is not None:
            self._pause.cancel()


def client_of(transport: asyncio.Transport) -> str | None:
    """Return the address of whoever is at the other end, as far as it is known."""
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) else None


def _to_nobody(closes: bool) -> None:
    """Do nothing."""
