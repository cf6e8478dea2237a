"""What identity events change is found in the time that it takes to read them, however many there are of one person."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from drm_ingest.postgres.relations.derive import Change, Wanted, changes, near

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


def test_what_a_change_moves_is_looked_for_among_what_touches_it() -> None:
    rows = [Row(number) for number in range(1000)]
    held = [(row.held["valid_from"], row.held["valid_to"]) for row in rows]
    starts = NOON + timedelta(hours=1001)
    longer = Wanted("user", False, ADA, "customer", held[500][0], starts + timedelta(hours=1), "app", None)
    assert near(held, Change(rows[500], longer)) == held[500:502]
    ever = Wanted("user", False, ADA, "customer", None, held[1][0], "app", None)
    assert near([*held, (None, None)], Change(None, ever)) == [*held[:2], (None, None)]
    assert near(held, Change(rows[998], None)) == [held[998]]
