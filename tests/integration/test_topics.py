"""Topics are created once, as they must be, and a process learns at its start what is wrong with them."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.topics import Topics, TopicsWrong, check, create, describe
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port

FAMILIES = ("care", "measurement")


async def test_missing_topics_are_created_and_creating_again_changes_nothing(settings: Settings) -> None:
    names = Topics.of(settings).all(FAMILIES)
    assert len(names) == 6
    with pytest.raises(TopicsWrong, match="does not exist; run `drm-ingest topics`"):
        await check(settings, FAMILIES)
    assert sorted(await create(settings, FAMILIES)) == sorted(names)
    await check(settings, FAMILIES)
    assert await create(settings, FAMILIES) == []
    await check(settings, FAMILIES)


async def test_a_family_that_comes_later_is_added(settings: Settings) -> None:
    await create(settings, FAMILIES)
    with pytest.raises(TopicsWrong, match=r"events\.commerce: does not exist"):
        await check(settings, [*FAMILIES, "commerce"])
    assert await create(settings, [*FAMILIES, "commerce"]) == [Topics.of(settings).events("commerce")]


async def test_topics_have_the_settings_that_keep_events(settings: Settings) -> None:
    await create(settings, FAMILIES)
    topics = Topics.of(settings)
    found = (await describe(settings, [topics.ingress]))[topics.ingress]
    assert found.partitions == settings.topic_partitions
    assert found.leaderless == ()
    assert found.configs["message.timestamp.type"] == "LogAppendTime"
    assert found.configs["unclean.leader.election.enable"] == "false"
    assert found.configs["retention.ms"] == str(settings.topic_retention_hours * 3_600_000)
    assert int(found.configs["max.message.bytes"]) > settings.writer_batch_bytes_max


async def test_another_partition_count_is_named_with_what_to_do(settings: Settings) -> None:
    await create(settings, FAMILIES)
    with pytest.raises(TopicsWrong, match="3 partitions, not 4; set DRM_TOPIC_PARTITIONS"):
        await check(settings.model_copy(update={"topic_partitions": 4}), FAMILIES)


async def test_a_setting_changed_by_hand_is_named_with_what_to_do(settings: Settings) -> None:
    await create(settings, FAMILIES)
    ingress = Topics.of(settings).ingress
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, ingress, {"message.timestamp.type": "CreateTime"})]
        )
        while "CreateTime" not in (await describe(settings, [ingress]))[ingress].configs.values():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the brokers hear of it a moment later
    finally:
        await admin.close()
    with pytest.raises(TopicsWrong) as caught:
        await check(settings, FAMILIES)
    assert any(
        line.startswith(ingress) and "message.timestamp.type=CreateTime, not LogAppendTime; kafka-configs" in line
        for line in caught.value.lines
    )


async def test_longer_retention_and_larger_messages_are_nobodys_mistake(settings: Settings) -> None:
    topics = Topics.of(settings)
    generous = topics.configs(topics.ingress, settings) | {"retention.ms": "-1", "max.message.bytes": "9000000"}
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topics.ingress, settings.topic_partitions, 1, topic_configs=generous)])
    finally:
        await admin.close()
    await create(settings, FAMILIES)
    await check(settings, FAMILIES)


async def test_too_few_brokers_for_the_replicas_is_said_and_nothing_is_created(settings: Settings) -> None:
    wanting = settings.model_copy(update={"topic_replication_factor": 3})
    with pytest.raises(TopicsWrong, match="set DRM_TOPIC_REPLICATION_FACTOR"):
        await create(wanting, FAMILIES)
    assert await describe(settings, Topics.of(settings).all(FAMILIES)) == {}


async def test_a_kafka_that_is_not_there_is_said(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{free_port()}"})
    with pytest.raises(KafkaUnreachable, match="DRM_KAFKA_BOOTSTRAP"):
        await check(nowhere, FAMILIES)
