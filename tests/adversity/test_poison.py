"""Poison written straight into the ingress topic: each is a dead letter with its reason, and is stored once mended."""

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drm_ingest.event import Receipt, content_hash
from drm_ingest.kafka import topics
from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

PARTITIONS = 3  # of the fixture `settings`
TYPE = "device.measurement"
TIME = "2026-11-22T10:00:00Z"
GOOD = b'{"temperature": 21.5}'
DATASCHEMA = b'"dataschema": 5'
DEEP = b'{"deep": %b%b}' % (b"[" * 900, b"]" * 900)


@dataclass(frozen=True)
class Poison:
    """How an event is spoilt, and what its letter must say."""

    reason: str
    data: bytes = GOOD
    spoil: Callable[[bytes], bytes] = lambda value: value
    headers: bool = True
    key: bytes | None = None
    stage: str = "enrich"


KINDS = {
    "NUL": Poison("text_not_storable", b'{"note": "\\u0000"}'),
    "invalid UTF-8": Poison("can't decode byte 0xff", b'{"note": "\xff"}'),
    "1e400": Poison("number_out_of_range: 1e400", b'{"temperature": 1e400}'),
    "2^64": Poison("number_out_of_range: 18446744073709551616", b'{"temperature": 18446744073709551616}'),
    "depth 900": Poison("too_deep", DEEP),
    "a number for an id": Poison("Expected `str", spoil=lambda value: value.replace(b'"id": "', b'"id": 5, "was": "')),
    "cut short": Poison("truncated", spoil=lambda value: value[:-10]),
    "without headers": Poison("no receipt", headers=False),
    "a key that is not its subject": Poison("its key is not its subject", key=b"somebody else"),
    "a lone surrogate": Poison("not an event", b'{"note": "\\ud800"}'),
    "a number for a dataschema": Poison(
        "Expected `str",
        spoil=lambda value: value.replace(b'"data":', DATASCHEMA + b', "data":'),
        stage="attach",
    ),
}


def an_event(subject: str, id_: str, data: bytes = GOOD) -> bytes:
    head = json.dumps({"specversion": "1.0", "id": id_, "type": TYPE, "subject": subject, "time": TIME})
    return head.encode()[:-1] + b', "data": %b}' % data


@contextlib.asynccontextmanager
async def process(command: str, environment: dict[str, str], log: Path) -> AsyncIterator[None]:
    with log.open("wb") as output:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", command, env=environment, stdout=output, stderr=output
        )
        try:
            yield
            assert started.returncode is None, f"{command} ended; see {log}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.terminate()
            await asyncio.wait_for(started.wait(), 60)


async def start_dead_letters(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "dead-letters", *arguments, env=environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def dead_letters(environment: dict[str, str], *arguments: str, given: bytes = b"") -> tuple[int, bytes, str]:
    """Run `drm-ingest dead-letters …` as a person does; return its exit code and what it wrote."""
    started = await start_dead_letters(environment, *arguments)
    out, err = await started.communicate(given)
    assert started.returncode is not None
    return started.returncode, out, err.decode()


async def letters_of(environment: dict[str, str]) -> list[dict[str, Any]]:
    code, out, err = await dead_letters(environment, "list", "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def sums(settings: Settings) -> dict[str, tuple[float, float]]:
    """Of each worker: received, and the sum of outcomes and in flight."""
    found = {}
    async with httpx.AsyncClient() as http:
        for worker, port in (("enrich", settings.enrich_port), ("attach", settings.attach_port)):
            text = (await http.get(f"http://{settings.worker_host}:{port}/metrics")).text
            values: dict[str, float] = {"drm_events_total": 0}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    values[sample.name] = values.get(sample.name, 0) + sample.value
            found[worker] = (
                values["drm_events_received_total"], values["drm_events_total"] + values["drm_events_in_flight"]
            )  # fmt: skip
    return found


async def until(db: asyncpg.Connection, sql: str, expected: int, within_s: float = 90.0) -> None:
    """Wait until a query counts so many."""
    deadline = monotonic() + within_s
    while (found := await db.fetchval(sql)) != expected:
        assert monotonic() < deadline, f"{sql}: {found}, not {expected}"
        await asyncio.sleep(0.1)


class Spoilt:
    """A hundred events for each kind of poison, one of them spoilt, in the ingress topic of a test."""

    def __init__(self, names: Topics, rounds: int) -> None:
        self.names = names
        self.poisoned: dict[str, Poison] = {}  # by id
        self.records: list[Outgoing] = []
        self._receipt = msgspec.json.encode(Receipt(received_at=datetime.now(UTC), request_id="r", sender="fleet"))
        for round_ in range(rounds):
            for at, (kind, poison) in enumerate(KINDS.items()):
                for number in range(99):
                    subject = f"meter-{number % 20}"
                    self._add(subject, an_event(subject, f"good-{round_}-{at}-{number}"))
                id_ = f"{kind}-{round_}."
                self.poisoned[id_] = poison
                value = poison.spoil(an_event(f"p-{id_}", id_, poison.data))
                self._add(f"p-{id_}", value, headers=poison.headers, key=poison.key)
        self.bad = len(self.poisoned)
        self.good = len(self.records) - self.bad

    def _add(self, subject: str, value: bytes, *, headers: bool = True, key: bytes | None = None) -> None:
        key = key or subject.encode()
        facts = [("receipt", self._receipt), ("content-hash", content_hash(TYPE, TIME, GOOD))] if headers else []
        partition = murmur2(key) % PARTITIONS
        self.records.append(Outgoing(self.names.ingress, partition, key, value, facts))

    def id_of(self, letter: dict[str, Any]) -> str:
        value = letter["value"].encode() if "value" in letter else base64.b64decode(letter["value_base64"])
        (found,) = [id_ for id_ in self.poisoned if id_.encode() in value]
        return found

    def check_reasons(self, letters: dict[str, dict[str, Any]]) -> None:
        assert letters.keys() == self.poisoned.keys()
        for id_, letter in letters.items():
            poison = self.poisoned[id_]
            assert (letter["stage"], letter["code"]) == (poison.stage, "unreadable"), letter
            assert poison.reason in letter["detail"], letter
            from_ = self.names.ingress if poison.stage == "enrich" else self.names.events("")
            assert letter["origin"].startswith(from_)

    def mended(self, id_: str, letter: dict[str, Any]) -> bytes:
        """A line as of `list --json`, its value mended by hand."""
        value = an_event(f"p-{id_}", id_)
        if self.poisoned[id_].stage == "attach":  # what enrich made of it stays
            value = letter["value"].encode().replace(DATASCHEMA, b'"dataschema": "1.0"')
        return json.dumps({"letter": letter["letter"], "value": value.decode()}).encode()


async def check_sums(settings: Settings) -> None:
    for worker, (received, accounted) in (await sums(settings)).items():
        assert received == accounted, worker


async def mend_and_replay(
    environment: dict[str, str], spoilt: Spoilt, letters: dict[str, dict[str, Any]], file: Path
) -> None:
    """One as a file, the others as lines; those three times, of which the second is nothing new."""
    one, *others = spoilt.poisoned
    code, raw, _ = await dead_letters(environment, "show", letters[one]["letter"], "--raw")
    assert (code, raw) == (0, an_event(f"p-{one}", one, spoilt.poisoned[one].data))
    file.write_bytes(an_event(f"p-{one}", one))  # noqa: ASYNC240 - a line
    code, _, told = await dead_letters(environment, "replay", letters[one]["letter"], "--from-file", str(file))
    assert code == 0, told
    lines = b"\n".join(spoilt.mended(id_, letters[id_]) for id_ in others)
    lines_of = ("replay", "--mended", "-", "--wait-s", "60")
    code, _, told = await dead_letters(environment, *lines_of, given=lines)
    assert (code, f"{len(others)} stored" in told) == (0, True), told
    code, _, told = await dead_letters(environment, *lines_of, given=lines)
    assert (code, f"{len(others)} left out, replayed before" in told) == (0, True), told
    code, _, told = await dead_letters(environment, *lines_of, "--again", given=lines)
    assert (code, f"{len(others)} stored" in told) == (0, True), told


@pytest.mark.row("poison")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.slow)])
async def test_poison_is_set_aside_with_its_reason_and_stored_once_when_mended_and_replayed(
    settings: Settings, environment: dict[str, str], tmp_path: Path, seen: Callable[[str], None], rounds: int
) -> None:
    await topics.create(settings, Schemas.load().families)
    spoilt = Spoilt(Topics.of(settings), rounds)
    good, bad = spoilt.good, spoilt.bad
    of_attach = sum(poison.stage == "attach" for poison in spoilt.poisoned.values())
    async with contextlib.AsyncExitStack() as stack:
        db = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
        stack.push_async_callback(db.close)
        writer = Writer(settings, Metrics("enrich"))
        await writer.start()
        stack.push_async_callback(writer.stop, 5)
        for command in ("enrich", "attach"):
            await stack.enter_async_context(process(command, environment, tmp_path / f"{command}.log"))
        await writer.write(spoilt.records)
        began = monotonic()
        await until(db, "select count(*) from event where id like 'good%'", good)
        await until(db, "select count(*) from dead_letter", of_attach)
        seen(f"{bad} of {good + bad} set aside, {monotonic() - began:.1f} s")

        letters = {spoilt.id_of(letter): letter for letter in await letters_of(environment)}
        spoilt.check_reasons(letters)
        assert await db.fetchval("select count(*) from event") == good
        await check_sums(settings)

        await mend_and_replay(environment, spoilt, letters, tmp_path / "mended.json")
        await until(db, "select count(*) from event", good + bad)
        hashes = {row["id"]: row["content_hash"].bytes for row in await db.fetch("select id, content_hash from event")}
        assert {hashes[id_] for id_ in spoilt.poisoned} == {content_hash(TYPE, TIME, GOOD)}
        assert len(hashes) == good + bad
        assert len(await letters_of(environment)) == bad, "none came back"
        await check_sums(settings)
        seen(f"{bad} mended, replayed twice, stored once")
