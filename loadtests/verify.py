"""Hold a ledger against Kafka, Postgres and the metrics: every broken promise is a sentence."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import httpx
import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from loadtests.traffic import Entry

SENTENCES_MAX = 20


async def quiet(kafka_bootstrap: str, postgres_dsn: str, prefix: str, timeout_s: float = 120.0) -> None:
    """Wait until every event has gone all the way: `enrich` committed the ingress, `attach` the families.

    Raises:
        TimeoutError: it did not happen; the message says what was left.
    """
    deadline = time.monotonic() + timeout_s
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await consumer.start()
    await admin.start()
    try:
        calm = 0
        while calm < 2:  # twice in a row: between the two looks nothing was still on its way from enrich to attach
            left = await _behind(consumer, admin, postgres_dsn, prefix)
            calm = 0 if left else calm + 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"not quiet after {timeout_s:.0f} s: {left}")
            await asyncio.sleep(0.3)
    finally:
        await admin.close()
        await consumer.stop()


async def _behind(
    consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient, postgres_dsn: str, prefix: str
) -> dict[str, int]:
    ends = await consumer.end_offsets(await _partitions(admin, await _topics(admin, prefix)))
    committed = await admin.list_consumer_group_offsets(f"{prefix}.enrich")
    connection = await asyncpg.connect(postgres_dsn)
    try:
        rows = await connection.fetch('select topic, "partition", next_offset from consumer_position')
    finally:
        await connection.close()
    reached = {TopicPartition(topic, partition): max(offset, 0) for topic, partition, offset in rows}
    reached |= {at: meta.offset for at, meta in committed.items() if at.topic == f"{prefix}.ingress"}
    return {
        f"{at.topic}/{at.partition}": end - reached.get(at, 0) for at, end in ends.items() if end > reached.get(at, 0)
    }


class Findings:
    """Broken promises, counted and told by example."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: object) -> None:
        """Note one."""
        self.counts[what] += 1
        if len(self.examples[what]) < SENTENCES_MAX:
            self.examples[what].append(str(example))

    def __str__(self) -> str:
        """Tell all kinds with their numbers and a few examples."""
        return "\n".join(
            f"{count} × {what}: {', '.join(self.examples[what][:3])}" for what, count in self.counts.items()
        )


Identity = tuple[str, str]


async def verify(
    entries: Sequence[Entry], *, kafka_bootstrap: str, postgres_dsn: str, prefix: str, metrics: Mapping[str, str]
) -> Findings:
    """Compare what senders were told with what is there; `metrics` names each process's base URL or metrics URL.

    Raises:
        TimeoutError: the path did not become quiet.
    """
    await quiet(kafka_bootstrap, postgres_dsn, prefix)
    findings = Findings()
    subjects = {entry.subject for entry in entries}
    conflicts = await _conflicts(_read(kafka_bootstrap, f"{prefix}.dead-letters", subjects))
    stored = await _stored(postgres_dsn, subjects)
    _check_answers(entries, findings)
    _check_stored(entries, stored, conflicts, findings)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    topics = await _topics(admin, prefix)
    await admin.close()
    for topic in topics:
        seen = await _check_order(topic, _read(kafka_bootstrap, topic, subjects), entries, findings)
        if topic == f"{prefix}.ingress":
            for entry in entries:
                if entry.answer == "accepted" and (entry.subject, entry.id, entry.hash) not in seen:
                    findings.add("an acknowledged event that is not in the ingress topic", (entry.subject, entry.id))
    await _until_settled(lambda: _check_sums(metrics), findings)
    return findings


def _check_answers(entries: Iterable[Entry], findings: Findings) -> None:
    for entry in entries:
        expected = "accepted" if entry.expect == "accepted" else f"rejected:{entry.expect}"
        if entry.answer not in {expected, "unknown"}:
            findings.add(f"a {entry.kind} event answered {entry.answer}, not {expected}", (entry.subject, entry.id))


def _check_stored(
    entries: Iterable[Entry],
    stored: Mapping[Identity, Sequence[str]],
    conflicts: Mapping[Identity, set[str]],
    findings: Findings,
) -> None:
    acked: dict[Identity, set[str]] = defaultdict(set)
    possible: dict[Identity, set[str]] = defaultdict(set)
    for entry in entries:
        identity = (entry.subject, entry.id)
        if entry.answer == "accepted":
            acked[identity].add(entry.hash)
        if entry.answer in {"accepted", "unknown"}:
            possible[identity].add(entry.hash)
    for identity, hashes in acked.items():
        there = stored.get(identity, ())
        if len(there) != 1:
            findings.add(f"an acknowledged event stored {len(there)} times", identity)
            continue
        for hash_ in hashes - {there[0]} - conflicts.get(identity, set()):
            findings.add("an acknowledged event neither stored nor an id_conflict", (*identity, hash_))
    for identity, there in stored.items():
        for hash_ in there:
            if hash_ not in possible.get(identity, ()):
                findings.add("something stored that was not sent, or was rejected", (*identity, hash_))
    for identity, hashes in conflicts.items():
        for hash_ in hashes - possible.get(identity, set()):
            findings.add("a dead letter for something not sent", (*identity, hash_))
        if hashes & set(stored.get(identity, ())):
            findings.add("an event both stored and a dead letter", identity)


async def _check_order(
    topic: str, records: AsyncIterator[ConsumerRecord[Any, Any]], entries: Iterable[Entry], findings: Findings
) -> set[tuple[str, str, str]]:
    """Within a subject: what was acknowledged before another was sent stands before it, repeats aside.

    Returns the subject, id and hash of all that the ledger knows and the topic has.
    """
    first_sent: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        first_sent.setdefault((entry.subject, entry.id, entry.hash), entry)
    seen: set[tuple[str, str, str]] = set()
    latest_sent: dict[str, int] = defaultdict(int)
    async for record in records:
        headers = dict(record.headers)
        event = orjson.loads(record.value)
        hash_ = event.get("contenthash") or headers["content-hash"].hex()
        key = (record.key.decode(), event.get("id", ""), hash_)
        if key in seen or (found := first_sent.get(key)) is None:
            continue
        seen.add(key)
        if found.answer == "accepted" and found.acked < latest_sent[found.subject]:
            findings.add(f"order not kept in {topic}", (found.subject, found.id))
        latest_sent[found.subject] = max(latest_sent[found.subject], found.first_sent)
    return seen


async def _check_sums(metrics: Mapping[str, str]) -> list[tuple[str, object]]:
    wrong: list[tuple[str, object]] = []
    async with httpx.AsyncClient(timeout=10) as client:
        for process, url in metrics.items():
            text = (await client.get(url if url.endswith("/metrics") else f"{url}/metrics")).text
            sums: Counter[str] = Counter()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    sums[sample.name] += int(sample.value)
            received, outcomes = sums["drm_events_received_total"], sums["drm_events_total"]
            if received != outcomes + sums["drm_events_in_flight"] or sums["drm_events_in_flight"]:
                told = {"received": received, "outcomes": outcomes, "in flight": sums["drm_events_in_flight"]}
                wrong.append((f"received is not the sum of outcomes on {process}", told))
    return wrong


async def _until_settled(check: Callable[[], Awaitable[list[tuple[str, object]]]], findings: Findings) -> None:
    """A retry of a sender that left may still be on its way: look again for a while."""
    deadline = time.monotonic() + 20
    while wrong := await check():
        if time.monotonic() > deadline:
            for what, example in wrong:
                findings.add(what, example)
            return
        await asyncio.sleep(0.5)


async def _stored(postgres_dsn: str, subjects: set[str]) -> dict[Identity, list[str]]:
    connection = await asyncpg.connect(postgres_dsn)
    try:
        rows = await connection.fetch(
            "select subject, id, content_hash from event where subject = any($1)", sorted(subjects), timeout=300
        )
    finally:
        await connection.close()
    stored: dict[Identity, list[str]] = defaultdict(list)
    for subject, id_, hash_ in rows:
        stored[subject, id_].append(hash_.hex)
    return stored


async def _conflicts(letters: AsyncIterator[ConsumerRecord[Any, Any]]) -> dict[Identity, set[str]]:
    conflicts: dict[Identity, set[str]] = defaultdict(set)
    async for letter in letters:
        if dict(letter.headers).get("dead-letter-code") == b"id_conflict":
            event = orjson.loads(letter.value)
            conflicts[letter.key.decode(), event["id"]].add(event["contenthash"])
    return conflicts


async def _topics(admin: AIOKafkaAdminClient, prefix: str) -> list[str]:
    """Return the topics that events go through."""
    return sorted(
        name
        for name in await admin.list_topics()
        if name == f"{prefix}.ingress" or name.startswith(f"{prefix}.events.")
    )


async def _partitions(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[TopicPartition]:
    described = await admin.describe_topics(list(topics))
    return [TopicPartition(topic["topic"], part["partition"]) for topic in described for part in topic["partitions"]]


async def _read(kafka_bootstrap: str, topic: str, subjects: set[str]) -> AsyncIterator[ConsumerRecord[Any, Any]]:
    """Read a topic from its beginning to its end, each partition in order; yield what is about these subjects.

    Others may have filled it before, with more than fits into memory.
    """
    wanted = {subject.encode() for subject in subjects}
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest", max_poll_records=5000)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await consumer.start()
    await admin.start()
    try:
        partitions = await _partitions(admin, [topic])
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        left = {at for at in partitions if ends[at] > 0}
        while left:
            for at, some in (await consumer.getmany(timeout_ms=500)).items():
                for record in some:
                    if record.key in wanted and record.offset < ends[at]:
                        yield record
            for at in list(left):
                if await consumer.position(at) >= ends[at]:
                    left.discard(at)
    finally:
        await admin.close()
        await consumer.stop()
