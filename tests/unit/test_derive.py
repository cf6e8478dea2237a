"""What identity events change is found in the time that it takes to read them, however many there are of one person."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from drm_ingest.postgres.derive import Wanted, changes

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADA = uuid.UUID(int=1)


class Row(Mapping[str, Any]):
    """A row that counts how often it is looked at."""

    def __init__(self, number: int) -> None:
        starts = NOON + number * timedelta(hours=2)
        self.held: dict[str, Any] = {
            "id": uuid.UUID(int=number), "version": 1, "role": "user", "party": ADA, "valid_from": starts,
            "valid_to": starts + timedelta(hours=1), "derived": True,
        }  # fmt: skip
        self.looks = 0

    def __getitem__(self, name: str) -> Any:
        self.looks += 1
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def wanted(self) -> Wanted:
        starts, ends = self.held["valid_from"], self.held["valid_to"]
        return Wanted("user", False, ADA, "customer", starts, ends, "app", None)


def test_what_one_person_did_a_thousand_times_is_not_looked_through_for_each_of_them() -> None:
    rows = [Row(number) for number in range(1000)]
    wanted = [row.wanted() for row in rows[:-1]] + [Row(2000).wanted()]
    (change,) = changes(rows, wanted)
    assert change.was is rows[-1]
    assert change.wanted is wanted[-1]
    assert sum(row.looks for row in rows) < 10 * len(rows)
