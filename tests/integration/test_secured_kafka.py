"""A Kafka that speaks TLS and asks for a password: every client of ours gets in, and says why when it does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.integration.brokers import SecuredBroker

from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.reader import Reader
from drm_ingest.kafka.tail import Wanted, tail
from drm_ingest.kafka.topics import Topics, check, create
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[SecuredBroker]:
    broker = SecuredBroker(tmp_path / "secured")
    await asyncio.to_thread(broker.start)
    yield broker
    broker.kill()


async def test_every_client_gets_in_and_says_why_when_it_does_not(settings: Settings, broker: SecuredBroker) -> None:
    secured = {
        "kafka_bootstrap": broker.secured,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_username": broker.USER,
        "kafka_sasl_password": SecretStr(broker.PASSWORD),
        "kafka_ssl_ca_file": broker.ca_file,
    }
    settings = settings.model_copy(update=secured)
    await create(settings, [])
    await check(settings, [])
    topics = Topics.of(settings)

    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    records = [Outgoing(topics.events("unclassified"), 0, b"k", b'{"id":"1"}', [("a", b"b")])] * 50
    await writer.write(records)
    await writer.stop(5)

    async with Reader(settings, Metrics("attach"), "attach", [topics.events("unclassified")]) as reader:
        batch = await anext(reader.batches(100))
        await reader.commit({partition: read[-1].offset + 1 for partition, read in batch.items()})
    assert sum(map(len, batch.values())) == 50

    shown: list[bytes | None] = []
    wanted = Wanted(topics.events("unclassified"))
    await tail(settings, wanted, lambda record: shown.append(record.value), from_beginning=True, limit=50)
    assert len(shown) == 50

    for wrong in (
        {"kafka_sasl_password": SecretStr("another")},
        {"kafka_ssl_ca_file": None},
        {"kafka_ssl_ca_file": Path("not-there.pem")},
        {"kafka_security_protocol": "PLAINTEXT"},
    ):
        refused = settings.model_copy(update={**wrong, "produce_deadline_s": 1.0})
        with pytest.raises(KafkaUnreachable, match="Check that it runs, and DRM_KAFKA_BOOTSTRAP"):
            await check(refused, [])
        with pytest.raises(KafkaUnreachable):
            await Writer(refused, Metrics("edge")).start()
