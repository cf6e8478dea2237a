"""A real refusal of each kind, for the description: made by the step that makes it for a sender."""

from collections.abc import Callable
from time import time

from drm_ingest.edge.admit import refuse_readers
from drm_ingest.edge.buckets import EVENTS
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.decompress import decompress, too_large_decompressed
from drm_ingest.edge.identify import nothing_sent
from drm_ingest.edge.quota import Quota, Rates
from drm_ingest.edge.quotas import rate_limited
from drm_ingest.edge.request import MalformedRequest, Request
from drm_ingest.edge.split import Media, media_of, split, too_many_events
from drm_ingest.edge.take import Take
from drm_ingest.edge.token import clock_skew, token_expired
from drm_ingest.errors import Refusal

REMEDIES = {
    "not_found": "POST events to /v1/events; /docs describes what else is here. Records are read from `serve`.",
    "method_not_allowed": "POST events to /v1/events. Events are read from `serve`.",
}
"""What to do, for refusals that no step of ours raises."""


def refusals(take: Take, request_id: str) -> dict[str, Refusal]:
    """Return a refusal for each code that refuses whole requests; `all_rejected` is an answer of its own."""
    settings = take.settings
    events_max = settings.request_events_max
    reader = Credential("", "", "reader", None)
    now = time()
    found = [
        _raised(lambda: split(b'[{"type": "device.status"', Media.BATCH, events_max)),
        _raised(lambda: decompress(b"gzip", b'{"type": "device.status"}', settings)),
        _malformed_request(take),
        nothing_sent(),
        token_expired(now),
        clock_skew("The token is not valid yet", now),
        _raised(lambda: refuse_readers(reader)),
        *(Refusal(code, remedy) for code, remedy in REMEDIES.items()),
        take.too_slow("body", settings.request_body_timeout_s),
        take.body_too_large(),
        too_large_decompressed(settings.request_decompressed_bytes_max),
        too_many_events(events_max),
        _raised(lambda: media_of(b"text/csv", binary=False)),
        _raised(lambda: decompress(b"br", b"", settings)),
        rate_limited(Quota(b"", Rates(100.0, None), Rates(), 10), EVENTS, 1.0, None),
        take.headers_too_large(),
        take.broken(request_id),
        take.write.not_acknowledged(),
        take.write.behind(),
        take.identify.not_ready(),
    ]
    return {refusal.problem.code: refusal for refusal in found}


def _raised(step: Callable[[], object]) -> Refusal:
    try:
        step()
    except Refusal as refusal:
        return refusal
    raise AssertionError("that step refuses no more what it is an example of")


def _malformed_request(take: Take) -> Refusal:
    head = b"POST /v1/events HTTP/1.1\r\n\r\n"
    try:
        Request().feed(head, 0)
    except MalformedRequest as error:
        return take.malformed_request(error)
    raise AssertionError("a request without Host is refused")
