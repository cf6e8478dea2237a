"""A record drawn for a person holds what the record says."""

import io
from typing import Any

from rich.console import Console

from drm_ingest.device.portrait import portrait, units_of
from drm_ingest.schema import Schemas

RECORD = {
    "id": "01a2035e-a56f-7a85-b8be-9b6882084fbe", "kind": "customer", "name": "Alva [b]", "refs": {"demo": ["alva"]},
    "events": 3, "events_by_type": {"device.measurement": 1, "commerce.purchase": 1, "feedback.rating": 1},
    "first_seen": "2010-03-01T10:12:00Z", "last_seen": "2010-10-10T23:57:00Z", "devices_now": 1,
    "devices": [{
        "id": "cgm-1", "model": None, "firmware": None,
        "roles": [{"role": "owner", "relationship": "…", "valid_from": "2010-03-01T00:00:00Z"}],
        "latest": {"device.measurement": {
            "subject": "cgm-1", "id": "1", "source": "", "occurred_at": "2010-10-10T23:57:00Z",
            "data": {"glucose": 165, "altitude": 51.79999999999996, "sensor": 30.8, "units": {"sensor": "nA"}},
        }},
    }],
}  # fmt: skip
FACTS: list[dict[str, Any]] = [
    {"type": "feedback.rating", "occurred_at": "2010-04-02T09:00:00Z", "data": {"scale": "nps", "score": 9}},
    {"type": "commerce.purchase", "occurred_at": "2010-03-01T10:12:00Z",
     "data": {"order": "S-1", "currency": "SEK", "total_minor": 129900, "lines": [{"name": "Starter set"}]}},
]  # fmt: skip


def drawn(**changed: int) -> list[str]:
    sent = {**RECORD["events_by_type"], **{name.replace("_", "."): count for name, count in changed.items()}}  # type: ignore[dict-item]
    return shown(RECORD, FACTS, sent)


def shown(record: dict[str, Any], facts: list[dict[str, Any]], sent: dict[str, int]) -> list[str]:
    console = Console(file=io.StringIO(), width=84)
    console.print(portrait(record, facts, sent, units_of(Schemas.load(), "device.measurement")))
    return [" ".join(line.strip("│ ").split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_person_sees_who_the_device_its_latest_readings_with_units_and_what_was_bought_and_said() -> None:
    lines = drawn()
    assert "Alva [b], customer" in lines[0]
    for line in (
        "device cgm-1 model unknown, owner since 1 Mar 2010",
        "latest 10 Oct 2010, 23:57 UTC",
        "165 mg/dL glucose",
        "51.8 m altitude",
        "30.8 nA sensor",
        "seen 1 Mar 2010 to 10 Oct 2010",
        "bought 1 Mar 2010 Starter set 1,299.00 SEK",
        "rated 2 Apr 2010 NPS 9 of 0 to 10",
        "device.measurement 1 1 ✓",
    ):
        assert line in lines


def test_a_count_that_is_not_what_was_sent_is_marked() -> None:
    assert "feedback.rating 1 2 ✗" in drawn(feedback_rating=2)


def test_a_record_on_which_nothing_has_arrived_is_drawn_as_well() -> None:
    empty = {"events": 0, "events_by_type": {}, "first_seen": None, "last_seen": None, "devices": []}
    assert "device.measurement 0 5 ✗" in shown({**RECORD, **empty}, [], {"device.measurement": 5})
