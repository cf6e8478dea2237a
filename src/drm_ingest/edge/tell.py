"""Tell in the log what was refused, so that a request id leads somewhere: a line a request, and not too many a second.

Requests all of whose events are accepted are not logged: a line would cost more than the event.
A line repeats nothing that was sent but the request id, and of a key no more than the registry shows of it.
"""

import asyncio
from collections import Counter
from time import monotonic

import structlog

from drm_ingest.edge.admit import Admitted
from drm_ingest.edge.answer import Answer
from drm_ingest.edge.credentials import Credentials, key_prefix
from drm_ingest.errors import DETAIL_CHARACTERS_MAX
from drm_ingest.settings import Settings

LEFT_OUT_AFTER_S = 1.0
"""How soon the log says that lines were left out, and how often at most."""

log = structlog.get_logger(__name__)


class Tell:
    """The lines about refusals, of one process."""

    def __init__(self, settings: Settings, credentials: Credentials) -> None:
        self._credentials = credentials
        self._per_s = self._allowed = float(settings.log_refusals_per_s_max)
        self._filled_at = monotonic()
        self._left_out = 0

    def answered(
        self,
        answer: Answer,
        *,
        client: str | None,
        sender: str | None = None,
        authorization: bytes | None = None,
        body_bytes: int | None = None,
    ) -> None:
        """Log an answer if it refused something.

        `sender` is who sent it, where that is known; else it is found by the header `authorization`.
        """
        refused = answer.refusal is not None or (answer.admitted is not None and answer.admitted.rejected)
        if not refused or not self._one_more_line():
            return
        if sender is None and authorization is not None:
            credential = self._credentials.find(authorization)
            sender = None if credential is None else credential.sender
        if answer.refusal is not None:
            problem = answer.refusal.problem
            _line(
                "a request was refused",
                request_id=answer.request_id,
                status=answer.status,
                code=problem.code,
                detail=answer.refusal.detail[:DETAIL_CHARACTERS_MAX],
                limit=answer.refusal.members.get("limit"),
                sender=sender,
                key_prefix=None if sender is not None or authorization is None else key_prefix(authorization),
                client=client,
                body_bytes=body_bytes,
            )
        elif answer.admitted is not None:
            _line(
                "events were rejected",
                request_id=answer.request_id,
                status=answer.status,
                sender=sender,
                client=client,
                accepted=answer.admitted.accepted,
                rejected=answer.admitted.rejected,
                codes=_rejections(answer.admitted),
            )

    def closed(self, code: int, reason: str, *, client: str | None, sender: str | None) -> None:
        """Log that a WebSocket was closed for what its client sent."""
        if self._one_more_line():
            _line("a WebSocket was closed", close_code=code, detail=reason, sender=sender, client=client)

    def _one_more_line(self) -> bool:
        """Whether one more line is within the limit; counts it where it is not."""
        now = monotonic()
        self._allowed = min(self._per_s, self._allowed + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._allowed >= 1:
            self._allowed -= 1
            return True
        if not self._left_out:
            asyncio.get_running_loop().call_later(LEFT_OUT_AFTER_S, self._say_left_out)
        self._left_out += 1
        return False

    def _say_left_out(self) -> None:
        log.info("lines about refusals were left out", lines=self._left_out)
        self._left_out = 0


def _line(what: str, **about: object) -> None:
    log.info(what, **{name: value for name, value in about.items() if value is not None})


def _rejections(admitted: Admitted) -> dict[str, int]:
    return dict(Counter(str(result.code) for result in admitted.results if result.status == "rejected"))
