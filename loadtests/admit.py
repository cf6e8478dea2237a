"""What admitting an event costs, by the microsecond: `python -m loadtests.admit [--profile]`.

Memory only: no HTTP, no Kafka. The best of many rounds, since this measures the code and not the machine's other work.
"""

import argparse
import cProfile
import gzip
import pstats
import timeit
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from drm_ingest.edge.admit import Admit, Admitted
from drm_ingest.edge.credentials import Credential
from drm_ingest.event import Receipt
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

EVENTS = 100


def event(number: int, **attributes: object) -> bytes:
    """Return an event of about 290 bytes of a known type; an attribute of None is left out."""
    whole = {
        "specversion": "1.0",
        "id": f"7f1c2a3e-4b5d-{number:012d}",
        "source": "gateway-12",
        "type": "device.measurement",
        "subject": f"meter-{number % 20}",
        "time": f"2026-11-22T10:{number // 60 % 60:02}:{number % 60:02}.123Z",
        "sequence": f"{number:09d}",
        "data": {"temperature": 21.5 + number / 100, "humidity": 44.25, "battery": 87, "rssi": -71, "run": number},
    } | attributes
    return orjson.dumps({name: value for name, value in whole.items() if value is not None})


def main() -> None:
    """Print the microseconds an event takes, for a few kinds of bodies."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--profile", action="store_true", help="tell where the time of a batch goes")
    profiled = arguments.parse_args().profile

    admit = Admit(Settings(), Schemas.load())
    sender = Credential("k", "loadtest", "sender", None)
    receipt = Receipt(datetime.now(UTC), "request-1", "loadtest", user_agent="loadtests/1.0")

    def array(events: list[bytes]) -> bytes:
        return b"[" + b",".join(events) + b"]"

    def admitting(body: bytes, content_type: bytes, encoding: bytes = b"") -> Callable[[], Admitted]:
        return lambda: admit.body(
            content_type=content_type, content_encoding=encoding, ce_headers=None,
            body=body, credential=sender, receipt=receipt,
        )  # fmt: skip

    batch, json = b"application/cloudevents-batch+json", b"application/json"
    plain = [event(n) for n in range(EVENTS)]
    cases = {
        f"a batch of {EVENTS}, valid, {len(plain[0])} bytes each": (plain, admitting(array(plain), batch)),
        "the same as lines": (plain, admitting(b"\n".join(plain), b"application/x-ndjson")),
        "the same, gzip": (plain, admitting(gzip.compress(array(plain)), batch, b"gzip")),
        "one event alone": (plain[:1], admitting(plain[0], b"application/cloudevents+json")),
    }
    kinds: dict[str, dict[str, object]] = {
        "with an extension attribute": {"channel": "beta"},
        "of unknown type": {"type": "acme.untyped"},
        "without id and time": {"id": None, "time": None},
        "with a 20-digit number": {"data": {"temperature": 1.5, "total": 2**64 - 1}},
        "breaking the schema": {"data": {"temperature": "warm"}},
    }
    for name, attributes in kinds.items():
        events = [event(n, **attributes) for n in range(EVENTS)]
        cases[f"a batch of {EVENTS} {name}"] = events, admitting(array(events), json)

    for name, (events, run) in cases.items():
        rounds = 2000 // len(events)
        best = min(timeit.repeat(run, number=rounds, repeat=25)) / rounds / len(events)
        accepted = len(run().records)
        print(f"{best * 1e6:7.2f} µs an event   {name} ({accepted} accepted)")

    if profiled:
        run = admitting(array(plain), batch)
        with cProfile.Profile() as profile:
            for _ in range(300):
                run()
        pstats.Stats(profile).sort_stats("tottime").print_stats(16)


if __name__ == "__main__":
    main()
