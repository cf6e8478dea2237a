"""A sender's clock is off, or it sends no time, or no id: one row, the right time, the right mark."""

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import asyncpg
import httpx
import pytest
from tests.adversity.running import Running
from tests.integration.edge import until
from websockets.asyncio.client import connect

TWO_HOURS = timedelta(hours=2)
OUR_CLOCK = timedelta(0)
SECOND = timedelta(seconds=1)  # a Date header knows no less
TYPE = "device.measurement"

Event = dict[str, Any]
Results = list[dict[str, Any]]
Send = Callable[[Sequence[Event], datetime | None], Awaitable[Results]]
"""Sends events, states that time as its own sending time, and returns what the answer says of them."""


@dataclass
class Stored:
    """What Postgres has of a device, and when it was sent by a clock that is right."""

    rows: list[asyncpg.Record]
    from_: datetime
    until: datetime


def ours() -> datetime:
    return datetime.now(UTC)


def text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def an_event(subject: str, **attributes: Any) -> Event:
    made = {"type": TYPE, "subject": subject, "id": "first", "data": {"temperature": 21.5}} | attributes
    return {name: value for name, value in made.items() if value is not None}


@pytest.fixture
def subject() -> str:
    return f"clock-{secrets.token_hex(6)}"


@pytest.fixture(params=["HTTP", "WebSocket"])
def send(request: pytest.FixtureRequest, path: Running) -> Send:
    where = path.where
    headers = {"authorization": f"Bearer {where['sender_key']}"}

    async def by_http(events: Sequence[Event], stated: datetime | None) -> Results:
        date = {} if stated is None else {"date": format_datetime(stated, usegmt=True)}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(where["edge_url"] + "/v1/events", json=list(events), headers=headers | date)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["results"])

    async def by_websocket(events: Sequence[Event], stated: datetime | None) -> Results:
        url = where["edge_url"].replace("http", "ws") + "/v1/events"
        async with connect(url, additional_headers=headers) as socket:
            if stated is not None:
                await socket.send(json.dumps({"hello": {"sent_at": text(stated)}}))
            await socket.send(json.dumps({"seq": 1, "events": events}))
            while "ack" not in (answer := json.loads(await socket.recv())):
                assert answer.keys() == {"window"}, answer
        return list(answer["results"])

    return by_http if request.param == "HTTP" else by_websocket


@pytest.fixture
async def stored(path: Running, send: Send, subject: str) -> AsyncIterator[Callable[[], Awaitable[Stored]]]:
    """Return a function that returns what is stored of `subject` once all that was sent has arrived."""
    from_ = ours()
    connection = await asyncpg.connect(path.where["postgres_dsn"])

    async def look() -> Stored:
        """What is sent of a device behind others arrives behind them."""
        sentinel = an_event(subject, id=secrets.token_hex(8), time=text(ours()))
        await send([sentinel], None)
        query = "select exists (select from event where subject = $1 and id = $2)"
        await until(lambda: connection.fetchval(query, subject, sentinel["id"]), 60)
        rows = await connection.fetch(
            "select * from event where subject = $1 and id <> $2 order by occurred_at", subject, sentinel["id"]
        )
        return Stored(rows, from_, ours())

    yield look
    await connection.close()


def codes(results: Results) -> list[str]:
    return [result["code"] for result in results]


Look = Callable[[], Awaitable[Stored]]

pytestmark = [pytest.mark.row("sender-clock"), pytest.mark.timeout(240)]  # the first of them starts the path


@pytest.mark.parametrize("off", [TWO_HOURS, -TWO_HOURS, timedelta(days=30), timedelta(days=-20_000)], ids=str)
async def test_with_a_stated_sending_time_a_clock_that_is_off_is_corrected_and_order_kept(
    send: Send, stored: Look, subject: str, off: timedelta
) -> None:
    now = ours() + off
    times = [text(now - timedelta(seconds=seconds)) for seconds in (60, 30, 0)]
    results = await send([an_event(subject, id=f"e-{at}", time=at) for at in times], now)
    found = await stored()
    assert results == []
    assert [row["occurred_at_raw"] for row in found.rows] == times
    assert {row["time_quality"] for row in found.rows} == {"corrected"}
    first, second, third = [row["occurred_at"] for row in found.rows]
    assert found.from_ - SECOND <= third <= found.until + SECOND
    assert (second - first, third - second) == (timedelta(seconds=30), timedelta(seconds=30))


@pytest.mark.parametrize("off", [TWO_HOURS, -TWO_HOURS, timedelta(days=-20_000)], ids=str)
async def test_without_a_stated_sending_time_nothing_is_corrected(
    send: Send, stored: Look, subject: str, off: timedelta
) -> None:
    time = text(ours() + off)
    assert await send([an_event(subject, time=time)], None) == []
    (row,) = (await stored()).rows
    assert (row["occurred_at_raw"], row["time_quality"]) == (time, "sent")
    assert text(row["occurred_at"]) == time


@pytest.mark.parametrize("off", [timedelta(minutes=4, seconds=50), timedelta(minutes=-4, seconds=-50)], ids=str)
async def test_a_stated_sending_time_within_five_minutes_corrects_nothing(
    send: Send, stored: Look, subject: str, off: timedelta
) -> None:
    time = text(ours() + off)
    await send([an_event(subject, time=time)], ours() + off + timedelta(seconds=2))
    (row,) = (await stored()).rows
    assert (text(row["occurred_at"]), row["time_quality"]) == (time, "sent")


@pytest.mark.parametrize("id_", ["first", None], ids=["with an id", "without an id"])
@pytest.mark.parametrize("stated", [True, False], ids=["sending time stated", "sending time not stated"])
async def test_a_retry_ten_minutes_later_is_stored_once_and_keeps_the_time_of_the_first(
    send: Send, stored: Look, subject: str, id_: str | None, stated: bool
) -> None:
    now = ours() - TWO_HOURS
    event = an_event(subject, id=id_, time=text(now))
    first = await send([event], now if stated else None)
    before = (await stored()).rows[0]
    # Its clock is corrected otherwise now than for the first, by ten minutes.
    retry = await send([event], now + timedelta(minutes=10) if stated else None)
    (row,) = [row for row in (await stored()).rows if row["occurred_at_raw"] == event["time"]]
    assert row == before
    assert row["time_quality"] == ("corrected" if stated else "sent")
    assert retry == first
    assert codes(first) == ([] if id_ else ["id_assigned"])


@pytest.mark.parametrize("off", [TWO_HOURS, None], ids=["clock off", "nothing stated"])
async def test_without_a_time_it_happened_when_it_was_received_and_a_retry_is_stored_once(
    send: Send, stored: Look, subject: str, off: timedelta | None
) -> None:
    for _ in range(2):
        results = await send([an_event(subject)], None if off is None else ours() + off)
        assert codes(results) == ["time_assumed"]
    found = await stored()
    (row,) = found.rows
    assert (row["occurred_at_raw"], row["time_quality"]) == (None, "assumed")
    assert row["occurred_at"] == row["received_at"]
    assert found.from_ <= row["occurred_at"] <= found.until


async def test_without_a_time_and_an_id_each_sending_is_another_event_and_its_answer_says_so(
    send: Send, stored: Look, subject: str
) -> None:
    results = [await send([an_event(subject, id=None)], ours() + TWO_HOURS) for _ in range(2)]
    rows = (await stored()).rows
    assert [codes(result) for result in results] == [["time_assumed", "id_assigned"]] * 2
    assert {row["id"] for row in rows} == {result[-1]["id"] for result in results}
    assert len(rows) == 2
    assert {row["time_quality"] for row in rows} == {"assumed"}


async def test_a_time_more_than_a_day_ahead_is_clamped_unless_the_clock_says_that_it_is_ahead(
    send: Send, stored: Look, subject: str
) -> None:
    ahead = ours() + timedelta(hours=25)
    assert codes(await send([an_event(subject, id="clamped", time=text(ahead))], None)) == ["time_clamped"]
    assert await send([an_event(subject, id="corrected", time=text(ahead))], ahead) == []
    decade = ahead + timedelta(days=3653)
    assert codes(await send([an_event(subject, id="decade", time=text(decade))], None)) == ["time_clamped"]
    found = await stored()
    marks = {row["id"]: row["time_quality"] for row in found.rows}
    assert marks == {"clamped": "clamped", "corrected": "corrected", "decade": "clamped"}
    assert all(found.from_ - SECOND <= row["occurred_at"] <= found.until + SECOND for row in found.rows)
    assert {row["occurred_at_raw"] for row in found.rows} == {text(ahead), text(decade)}


async def test_a_leap_second_is_the_last_instant_before_it_and_kept_as_sent(
    send: Send, stored: Look, subject: str
) -> None:
    leap = "2016-12-31T23:59:60.5Z"
    for _ in range(2):
        assert await send([an_event(subject, time=leap)], None) == []
    (row,) = (await stored()).rows
    assert row["occurred_at_raw"] == leap
    assert row["occurred_at"] == datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
