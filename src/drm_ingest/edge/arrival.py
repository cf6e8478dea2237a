"""A request while it arrives at the door: may they send, and this much? Then it is taken."""

from collections.abc import Callable

from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.replies import Exchange
from drm_ingest.edge.request import Request
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal

_READ_OVER_BYTES = 64 * 1024
_LITTLE_BYTES = 1024
"""An event of that size is judged as quickly as a request is refused: not worth a look at its quota beforehand."""


class Arrival(Request):
    """The request that is being read, with what was decided about it so far."""

    __slots__ = (
        "_clock_offset_ms",
        "_counted_bytes",
        "_credential",
        "_take",
        "_waited",
        "client",
        "expects_continue",
        "refusal",
        "request_id",
    )

    _credential: Credential

    def __init__(self, take: Take) -> None:
        self._take = take
        self.client: Callable[[], str | None] = _nobody
        """Tells the address at the other end."""
        self._counted_bytes = 0
        super().__init__()

    def begin(self) -> None:
        """Be ready for the next request."""
        Request.begin(self)  # as super(), for a tenth of what that costs
        self.refusal: Refusal | None = None
        """Decided before the end; the rest of the body is read over."""
        self.request_id = ""
        self.expects_continue = False

    def close(self) -> None:
        """Let go of all that is held."""
        self._release()
        super().close()

    def enter(self, *, was_limited: bool = False) -> None:
        """The head is complete: decide by it; `was_limited`: the answer before was a 429, and so may this one be."""
        headers, take = self.headers, self._take
        self._waited = False
        self.request_id = take.request_id(headers)
        self._clock_offset_ms = take.clock_offset_ms(headers) if b"date" in headers else 0
        self.expects_continue = b"expect" in headers
        spends_at_once = self.complete and not was_limited and self.body_bytes <= _LITTLE_BYTES
        try:
            self._credential = take.enter(headers, self.client, spends_at_once=spends_at_once)
        except Refusal as refusal:
            self._refuse(refusal)

    def wait(self) -> None:
        """More of the body has to come: decide by what is there, and count it as held."""
        self._waited = True
        if self.refusal is None:
            try:
                self._take.hold(self.body_bytes, self._counted_bytes)  # of a chunked body nobody stated the length
            except Refusal as refusal:
                self._refuse(refusal)
        if self.framing_bytes > self._take.settings.request_header_bytes_max:
            self._refuse(Refusal("malformed_request", "Send chunks with content, and short trailers."))
        if self.refusal is None:
            self._take.limits.body_bytes += self.body_bytes - self._counted_bytes
            self._counted_bytes = self.body_bytes

    @property
    def reads_over(self) -> bool:
        """Whether the rest of a refused body is so short that the connection is better kept than closed.

        One that ignores its 429s would only open the next, past the pause that its answers take.
        """
        limited = self.refusal is not None and self.refusal.problem.code == "rate_limited"
        return limited and 0 < self.left <= _READ_OVER_BYTES and not self.expects_continue

    def finish(self, exchange: Exchange) -> None:
        """The request is complete: take it; `exchange` gets its answer. Then this is the next request."""
        take, headers, refusal, request_id = self._take, self.headers, self.refusal, self.request_id
        body = self.body()
        self.tell(exchange)
        self._release()
        self.begin()
        if refusal is None and len(body) > take.settings.request_body_bytes_max:
            refusal = take.body_too_large()
        if refusal is None:
            exchange.alone = take.body(
                headers, body, self._credential, self._clock_offset_ms, request_id, exchange.reply,
                waited=self._waited,
            )  # fmt: skip
        else:
            exchange.reply(take.refuse(refusal, request_id))

    def tell(self, exchange: Exchange) -> None:
        """Note what a line in the log needs."""
        exchange.authorization = self.headers.get(b"authorization")
        exchange.body_bytes = self.body_bytes

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal.untraced()
        self.wanted = False

    def _release(self) -> None:
        if self._counted_bytes:
            self._take.limits.body_bytes -= self._counted_bytes
            self._counted_bytes = 0


def _nobody() -> None:
    """Before there is a connection."""
