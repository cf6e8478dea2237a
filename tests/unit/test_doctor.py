"""What the doctor makes of what it saw; seeing is tested on real servers."""

from drm_ingest.doctor import _unwritable
from drm_ingest.kafka.topics import Found, Topics, wrong
from drm_ingest.settings import Settings


def found(settings: Settings, **changed: object) -> Found:
    topics = Topics.of(settings)
    values: dict[str, object] = {
        "partitions": settings.topic_partitions,
        "replication_factor": settings.topic_replication_factor,
        "leaderless": (),
        "in_sync_min": settings.topic_replication_factor,
        "configs": topics.configs(topics.ingress, settings),
    }
    return Found(**(values | changed))  # type: ignore[arg-type]


def test_a_topic_as_it_must_be_has_nothing_wrong() -> None:
    settings = Settings()
    assert wrong(Topics.of(settings).ingress, found(settings), settings) == []
    assert list(_unwritable(found(settings), settings)) == []


def test_a_partition_without_a_leader_is_named() -> None:
    settings = Settings()
    assert list(_unwritable(found(settings, leaderless=(2, 5), in_sync_min=0), settings)) == [
        "partition 2, 5 has no leader; start the broker that holds it, its events are answered 503"
    ]


def test_too_few_replicas_in_step_are_told_apart_from_too_few_replicas() -> None:
    settings = Settings()
    (few_in_step,) = _unwritable(found(settings, in_sync_min=1), settings)
    assert few_in_step.startswith("1 of the 2 replicas in step that a write needs; start the missing brokers")
    single = found(settings, in_sync_min=1, replication_factor=1)
    assert list(_unwritable(single, settings)) == []
    assert "1 of 3 replicas" in wrong(Topics.of(settings).ingress, single, settings)[0]


def test_settings_that_cannot_be_read_say_which_right_is_missing() -> None:
    settings = Settings()
    assert wrong(Topics.of(settings).ingress, found(settings, configs={}), settings) == [
        "its settings cannot be read; allow this user DescribeConfigs on it"
    ]
