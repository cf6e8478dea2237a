"""The topics: their names, their settings, their creation, and the check at the start of each process."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, KafkaError, for_code

from drm_ingest.kafka.connection import KafkaUnreachable, connection
from drm_ingest.schema import UNCLASSIFIED
from drm_ingest.settings import Settings

TIMEOUT_S = 15.0
HOUR_MS = 3_600_000
RECORD_OVERHEAD_BYTES = 64 * 1024  # between the largest batch of ours and what a topic must take
TOPIC_EXISTS = 36


class TopicsWrong(Exception):
    """Topics are missing or not as they must be; the message says what to do."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        """`problems` are by topic; the message names each problem once."""
        topics_by_problem: dict[str, list[str]] = {}
        for topic, texts in problems.items():
            for text in texts:
                topics_by_problem.setdefault(text, []).append(topic)
        self.lines = [f"{', '.join(topics)}: {text}" for text, topics in topics_by_problem.items()]
        super().__init__("\n".join(self.lines))


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of all topics under one prefix."""

    prefix: str

    @classmethod
    def of(cls, settings: Settings) -> "Topics":
        """Return the names for these settings."""
        return cls(settings.topic_prefix)

    @property
    def ingress(self) -> str:
        """Events as sent, for `enrich` only."""
        return f"{self.prefix}.ingress"

    def events(self, family: str) -> str:
        """Enriched events of one family (or `unclassified`), for product teams and `attach`."""
        return f"{self.prefix}.events.{family}"

    @property
    def dead_letters(self) -> str:
        """What could not go on, with its reason."""
        return f"{self.prefix}.dead-letters"

    @property
    def relationship_changes(self) -> str:
        """What changed in a record, numbered."""
        return f"{self.prefix}.relationship-changes"

    def all(self, families: Iterable[str]) -> list[str]:
        """Return every topic; `unclassified` is always among the families."""
        events = [self.events(family) for family in sorted({*families, UNCLASSIFIED})]
        return [self.ingress, *events, self.dead_letters, self.relationship_changes]

    def configs(self, topic: str, settings: Settings) -> dict[str, str]:
        """Return what one of the topics must be set to."""
        hours = settings.topic_retention_hours
        if topic in {self.dead_letters, self.relationship_changes}:
            hours = settings.dead_letter_retention_hours
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(hours * HOUR_MS),
            # With CreateTime an old event is deleted unread, and one future event fails its whole batch.
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": str(settings.topic_min_insync_replicas),
            "unclean.leader.election.enable": "false",
            "max.message.bytes": str(settings.writer_batch_bytes_max + RECORD_OVERHEAD_BYTES),
        }


@dataclass(frozen=True, slots=True)
class Found:
    """One topic as it is in Kafka."""

    partitions: int
    replication_factor: int
    leaderless: tuple[int, ...]
    in_sync_min: int  # replicas, of the partition that has the fewest
    configs: Mapping[str, str]


async def create(settings: Settings, families: Iterable[str]) -> list[str]:
    """Create the topics that are missing and return their names; safe to repeat, changes nothing that exists.

    Raises:
        KafkaUnreachable: no bootstrap server answers.
        TopicsWrong: Kafka refuses; the message says why.
    """
    topics = Topics.of(settings)
    names = topics.all(families)
    async with admin_client(settings) as admin:
        there = set(await admin.list_topics())
        new = [
            NewTopic(
                name,
                num_partitions=settings.topic_partitions,
                replication_factor=settings.topic_replication_factor,
                topic_configs=topics.configs(name, settings),
            )
            for name in names
            if name not in there
        ]
        if not new:
            return []
        answer = await admin.create_topics(new, timeout_ms=round(TIMEOUT_S * 1000))
        created: list[str] = []
        problems: dict[str, list[str]] = {}
        for name, code, *message in answer.topic_errors:
            if code == 0:
                created.append(name)
            elif code != TOPIC_EXISTS:  # somebody else was quicker: just as good
                problems[name] = [_refusal(code, message[0] if message else None, settings)]
        if problems:
            raise TopicsWrong(problems)
        await _until_led(admin, created)
    return created


async def check(settings: Settings, families: Iterable[str]) -> None:
    """Make sure that every topic is there and as it must be.

    Raises:
        TopicsWrong: says each thing that is wrong and what to do.
        KafkaUnreachable: no bootstrap server answers.
    """
    names = Topics.of(settings).all(families)
    found = await describe(settings, names)
    problems = {name: wrong(name, found.get(name), settings) for name in names}
    if any(problems.values()):
        raise TopicsWrong(problems)


async def describe(settings: Settings, names: Iterable[str]) -> dict[str, Found]:
    """Return those of the topics that exist.

    Raises:
        KafkaUnreachable: no bootstrap server answers.
    """
    async with admin_client(settings) as admin:
        there = set(await admin.list_topics())
        present = [name for name in names if name in there]
        if not present:
            return {}
        described = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics(present)}
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in present])
        configs = {
            name: {entry[0]: entry[1] for entry in entries}
            for answer in answers
            for _, _, _, name, entries in answer.resources
        }
    return {
        name: Found(
            partitions=len(partitions),
            replication_factor=max((len(partition["replicas"]) for partition in partitions), default=0),
            leaderless=tuple(partition["partition"] for partition in partitions if partition["leader"] == -1),
            in_sync_min=min((len(partition["isr"]) for partition in partitions), default=0),
            configs=configs.get(name, {}),
        )
        for name, partitions in described.items()
    }


def wrong(name: str, found: Found | None, settings: Settings) -> list[str]:
    """Return what is wrong with a topic, and what to do; nothing when it is as it must be."""
    if found is None:
        return ["does not exist; run `drm-ingest topics`"]
    problems = []
    if found.partitions != settings.topic_partitions:
        problems.append(
            f"{found.partitions} partitions, not {settings.topic_partitions}; set DRM_TOPIC_PARTITIONS to what all "
            "topics have (a count cannot go down, and raising it moves keys to other partitions)"
        )
    if found.replication_factor < settings.topic_replication_factor:
        problems.append(
            f"{found.replication_factor} of {settings.topic_replication_factor} replicas; reassign its partitions "
            "(kafka-reassign-partitions), or set DRM_TOPIC_REPLICATION_FACTOR"
        )
    if not found.configs:
        return [*problems, "its settings cannot be read; allow this user DescribeConfigs on it"]
    for key, value in Topics.of(settings).configs(name, settings).items():
        is_ = found.configs.get(key, "unknown")
        fits = int(is_) >= int(value) if key in _AT_LEAST and is_.isdigit() else is_ == value
        if not fits and not (key == "retention.ms" and is_ == "-1"):  # -1 is for ever
            problems.append(f"{key}={is_}, not {value}; kafka-configs --alter --topic … --add-config {key}={value}")
    return problems


_AT_LEAST = {"retention.ms", "min.insync.replicas", "max.message.bytes"}


def _refusal(code: int, message: str | None, settings: Settings) -> str:
    error = for_code(code)
    reason = f"not created: {message or error.__name__}"
    if error is InvalidReplicationFactorError:
        reason += (
            f" It takes {settings.topic_replication_factor} brokers; on fewer, set DRM_TOPIC_REPLICATION_FACTOR and "
            "DRM_TOPIC_MIN_INSYNC_REPLICAS."
        )
    return reason


async def _until_led(admin: AIOKafkaAdminClient, names: list[str]) -> None:
    """Wait until the brokers have heard of new topics, or the next client would find them missing."""
    async with asyncio.timeout(TIMEOUT_S):
        while names:
            described = await admin.describe_topics(names)
            led = [
                topic["topic"]
                for topic in described
                if topic["partitions"] and all(partition["leader"] != -1 for partition in topic["partitions"])
            ]
            if len(led) == len(names):
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give a connected admin client.

    Raises:
        KafkaUnreachable: no bootstrap server answers, or Kafka breaks off.
    """
    admin = AIOKafkaAdminClient(request_timeout_ms=round(TIMEOUT_S * 1000), **connection(settings))
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(settings, error) from error
    finally:
        await admin.close()
