"""`drm-ingest doctor`: look at everything the path needs, and say what to do about what is wrong.

Each check is one function that returns findings; the table is made of them. A warning tells what may be meant that way.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus

import asyncpg
import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.probe import probe_group, probe_newest
from drm_ingest.kafka.topics import Found, Topics, admin_client, describe, wrong
from drm_ingest.postgres.migrate import BadMigrations
from drm_ingest.postgres.probe import Probe, probe
from drm_ingest.schema import BadSchema, Schemas
from drm_ingest.settings import Settings, refused

POSTGRES_VERSION_MIN = 18
CLOCK_OFF_MAX_S = 2.0
PRODUCE_MAX_S = 30.0  # from receipt to Kafka; longer than the deadline of any event
HEALTH_TIMEOUT_S = 2.0
SET_CLOCKS = "let NTP set the clocks (timedatectl set-ntp true, or chrony) on every machine"


class State(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    subject: str
    state: State
    what: str
    to_do: str = ""


def run(console: Console) -> int:
    """Look, print, and return the exit code: 1 when something is wrong."""
    findings = asyncio.run(examine())
    console.print(table(findings))
    found_wrong = sum(finding.state is State.WRONG for finding in findings)
    warnings = sum(finding.state is State.WARNING for finding in findings)
    told = "[green]nothing is wrong[/]" if not found_wrong else f"[red]{found_wrong} wrong[/]"
    console.print(told + (f", [yellow]{warnings} to look at (!)[/]" if warnings else ""))
    return 1 if found_wrong else 0


async def examine() -> list[Finding]:
    """Return what every check found; those that need what is missing are left out."""
    try:
        settings = Settings()
        families = Schemas.load(settings.schemas_dir).families
    except ValidationError as error:
        return list(settings_refused(error))
    except BadSchema as error:
        return [Finding("schemas", State.WRONG, str(error), "correct the file, or set DRM_SCHEMAS_DIR")]
    findings = [Finding("settings", State.GOOD, f"{len(families)} families of events")]
    names = Topics.of(settings).all(families)
    for check in (kafka_answers, lambda s: topics_fit(s, names), workers_read, workers_ready, kafka_clock):
        found = await _unless_away(check, settings)
        findings += found
        if any(finding.subject == "Kafka" and finding.state is State.WRONG for finding in found):
            break
    return findings + await postgres_fits(settings)


async def _unless_away(check: Callable[[Settings], Awaitable[list[Finding]]], settings: Settings) -> list[Finding]:
    try:
        return await check(settings)
    except KafkaUnreachable as error:
        what, _, to_do = str(error).partition(". ")
        return [Finding("Kafka", State.WRONG, what, to_do)]


def settings_refused(error: ValidationError) -> Iterator[Finding]:
    """Say which settings are wrong."""
    for name, what in refused(error):
        yield Finding("settings", State.WRONG, what, f"set {name}" if name else "see docs/settings.md")


async def kafka_answers(settings: Settings) -> list[Finding]:
    """See whether Kafka is there, and large enough for the replicas."""
    async with admin_client(settings) as admin:
        brokers = (await admin.describe_cluster())["brokers"]
    told = f"{len(brokers)} broker{'s' if len(brokers) > 1 else ''} at {settings.kafka_bootstrap}"
    if len(brokers) < settings.topic_replication_factor:
        to_do = "start the others, or set DRM_TOPIC_REPLICATION_FACTOR"
        return [Finding("Kafka", State.WARNING, f"{told}, for {settings.topic_replication_factor} replicas", to_do)]
    return [Finding("Kafka", State.GOOD, told)]


async def topics_fit(settings: Settings, names: list[str]) -> list[Finding]:
    """See whether the topics are there, as they must be, with leaders and enough replicas in step."""
    found = await describe(settings, names)
    problems: dict[str, list[str]] = {}
    for name in names:
        topic = found.get(name)
        for problem in [*wrong(name, topic, settings), *(_unwritable(topic, settings) if topic else ())]:
            problems.setdefault(problem, []).append(name)
    if not problems:
        return [Finding("topics", State.GOOD, f"{len(names)} with {settings.topic_partitions} partitions each")]
    findings = []
    for problem, topics in problems.items():
        what, _, to_do = problem.partition("; ")
        which = "all" if len(topics) == len(names) else ", ".join(topics)
        findings.append(Finding("topics", State.WRONG, f"{which}: {what}", to_do))
    return findings


def _unwritable(topic: Found, settings: Settings) -> Iterator[str]:
    if topic.leaderless:
        partitions = ", ".join(map(str, topic.leaderless))
        yield f"partition {partitions} has no leader; start the broker that holds it, its events are answered 503"
    elif topic.in_sync_min < settings.topic_min_insync_replicas <= topic.replication_factor:
        yield (
            f"{topic.in_sync_min} of the {settings.topic_min_insync_replicas} replicas in step that a write needs; "
            "start the missing brokers, events are answered 503"
        )


async def workers_read(settings: Settings) -> list[Finding]:
    """See whether somebody enriches and attaches, and how far behind."""
    findings = []
    for group in ("enrich", "attach"):
        found = await probe_group(settings, group)
        events = "event" if found.lag_events == 1 else "events"
        behind = "never read yet" if found.lag_events is None else f"{found.lag_events:,} {events} behind"
        if found.members:
            workers = "1 worker" if found.members == 1 else f"{found.members} workers"
            findings.append(Finding(group, State.GOOD, f"{workers}, {behind}"))
        else:
            findings.append(Finding(group, State.WARNING, f"nobody reads, {behind}", f"start `drm-ingest {group}`"))
    return findings


async def workers_ready(settings: Settings) -> list[Finding]:
    """See whether the workers say themselves that they cannot go on; those on other machines are not heard here."""
    findings = []
    async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S) as client:
        for worker, port in (("enrich", settings.enrich_port), ("attach", settings.attach_port)):
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = await client.get(f"http://{settings.worker_host}:{port}/health/ready")
                if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                    what, _, to_do = str(answer.json().get("detail", "")).partition(" · ")
                    findings.append(Finding(worker, State.WRONG, f"is not ready: {what}", to_do))
    return findings


async def kafka_clock(settings: Settings) -> list[Finding]:
    """See whether the clocks of Kafka, the edge and this machine agree; the newest event was seen by all."""
    newest = await probe_newest(settings, Topics.of(settings).ingress)
    if newest is None:
        return [Finding("clocks", State.GOOD, "no event yet to compare Kafka's with")]
    ahead_s = (newest.written_at - datetime.now(UTC)).total_seconds()
    if ahead_s > CLOCK_OFF_MAX_S:
        return [Finding("clocks", State.WRONG, f"Kafka's is {ahead_s:.1f} s ahead of this machine's", SET_CLOCKS)]
    if newest.received_at is not None:
        took_s = (newest.written_at - newest.received_at).total_seconds()
        if not -CLOCK_OFF_MAX_S < took_s < PRODUCE_MAX_S:
            which = "behind" if took_s < 0 else "ahead of"
            return [Finding("clocks", State.WRONG, f"Kafka's is {abs(took_s):.1f} s {which} the edge's", SET_CLOCKS)]
    return [Finding("clocks", State.GOOD, "Kafka's fits the newest event")]


async def postgres_fits(settings: Settings) -> list[Finding]:
    """See whether Postgres is there, new enough, migrated, and on time."""
    try:
        found = await probe(settings.postgres_dsn.get_secret_value(), settings.postgres_acquire_timeout_s)
    except BadMigrations as error:
        return [Finding("migrations", State.WRONG, str(error))]
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        reason = str(error) or type(error).__name__
        return [Finding("Postgres", State.WRONG, f"does not answer: {reason}", "start it, or set DRM_POSTGRES_DSN")]
    return [_postgres_version(found), _migrations(found), _postgres_clock(found)]


def _postgres_version(found: Probe) -> Finding:
    if found.version < POSTGRES_VERSION_MIN:
        to_do = f"move to Postgres {POSTGRES_VERSION_MIN} or later"
        return Finding("Postgres", State.WRONG, f"version {found.version_text}", to_do)
    return Finding("Postgres", State.GOOD, f"version {found.version_text}")


def _migrations(found: Probe) -> Finding:
    if found.pending:
        what = f"{', '.join(found.pending)} not applied"
        return Finding("migrations", State.WRONG, what, "run `drm-ingest migrate`")
    return Finding("migrations", State.GOOD, "all applied")


def _postgres_clock(found: Probe) -> Finding:
    if abs(found.ahead_s) > CLOCK_OFF_MAX_S:
        which = "ahead of" if found.ahead_s > 0 else "behind"
        what = f"Postgres's is {abs(found.ahead_s):.1f} s {which} this machine's"
        return Finding("clocks", State.WRONG, what, SET_CLOCKS)
    return Finding(
        "clocks", State.GOOD, f"Postgres's differs by {abs(found.ahead_s) * 1000:.0f} ms from this machine's"
    )


def table(findings: list[Finding]) -> Table:
    """Return the table that people see."""
    marks = {State.GOOD: "[green]✓[/]", State.WARNING: "[yellow]![/]", State.WRONG: "[red]✗[/]"}
    drawn = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    drawn.add_column()
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for finding in findings:
        to_do = f"\n[cyan]→ {escape(finding.to_do)}[/]" if finding.to_do else ""
        drawn.add_row(marks[finding.state], finding.subject, escape(finding.what) + to_do)
    return drawn
