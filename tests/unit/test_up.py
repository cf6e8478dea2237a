"""The parts of the one-machine runtime that need no process."""

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from drm_ingest.schema import Schemas
from drm_ingest.up.command import Up
from drm_ingest.up.fetch import pinned
from drm_ingest.up.greeting import curl
from drm_ingest.up.kafka import new_cluster_id
from drm_ingest.up.last_words import LINE_CHARACTERS_MAX, readable
from drm_ingest.up.supervisor import restart_pause_s


def test_the_pause_before_a_restart_doubles_up_to_five_seconds() -> None:
    assert [restart_pause_s(deaths) for deaths in range(1, 8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert restart_pause_s(10_000) == 5.0


def test_the_jars_are_one_kafka_with_its_checksums() -> None:
    jars = pinned()
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {"4.3.1"}
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in jars)
    assert len({jar.file_name for jar in jars}) == len(jars)


def test_no_cluster_id_looks_like_an_option_to_the_tool_that_formats() -> None:
    ids = [new_cluster_id() for _ in range(2000)]
    assert not [made for made in ids if made.startswith("-") or len(made) != 22]


def test_the_greeting_sends_an_event_that_its_schema_takes() -> None:
    printed = curl("http://127.0.0.1:8080", "drm_key").replace("$(date -u +%FT%TZ)", "2026-11-22T10:00:00Z")
    words = shlex.split(printed.replace("$(date +%s%N)", "1795341600000000001"))
    (event,) = json.loads(words[words.index("-d") + 1])
    schema = Schemas.load().find(event["type"], None)
    assert schema is not None
    assert schema.is_valid(event["data"])
    assert event["id"] == "1795341600000000001"
    assert "Authorization: Bearer drm_key" in words


def test_last_words_say_what_happened_and_not_the_json_around_it() -> None:
    failed = {
        "event": "the process failed",
        "level": "critical",
        "pid": 1,
        "exception": "  + Exception Group Traceback\n    | OSError: the disk is full\n    +------\n",
    }
    bound = {"event": "the port is taken", "level": "error", "port": 8080}
    assert readable([json.dumps(failed), json.dumps(bound), "Exception in thread main"]) == [
        "critical the process failed: OSError: the disk is full",
        "error the port is taken port=8080",
        "Exception in thread main",
    ]


def test_last_words_are_short() -> None:
    assert [len(line) for line in readable(["x" * 10_000])] == [LINE_CHARACTERS_MAX]


@pytest.fixture
def make_up(tmp_path: Path) -> Callable[..., Up]:
    def make(**environment: str) -> Up:
        return Up(tmp_path / "data", 18_000, None, environment)

    return make


def test_what_an_up_published_does_not_make_the_next_one_use_a_kafka_that_is_gone(make_up: Callable[..., Up]) -> None:
    first = make_up(DRM_POSTGRES_DSN="postgresql://mine/drm", DRM_LOG_LEVEL="DEBUG", HOME="/home/ada")
    first.environment |= {"DRM_KAFKA_BOOTSTRAP": "127.0.0.1:4001", "DRM_EDGE_PORT": "18000"}
    published = first.tool_environment()
    assert published["DRM_DATA_DIR"] == str(first.data_dir.path)
    again = make_up(**published, HOME="/home/ada")
    assert again.given == {
        "DRM_POSTGRES_DSN": "postgresql://mine/drm", "DRM_LOG_LEVEL": "DEBUG", "HOME": "/home/ada",
    }  # fmt: skip
    own = make_up(**published | {"DRM_KAFKA_BOOTSTRAP": "kafka.example:9092"})
    assert own.given["DRM_KAFKA_BOOTSTRAP"] == "kafka.example:9092"


def test_a_signal_passed_on_twice_asks_once_and_a_later_one_kills(
    make_up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch
) -> None:
    up, now = make_up(), 100.0
    monkeypatch.setattr("drm_ingest.up.command.time.monotonic", lambda: now)
    up.on_signal(signal.SIGTERM, None)
    now += 0.9
    up.on_signal(signal.SIGTERM, None)
    assert (up.supervisor.stop_requested, up.supervisor.kill_requested) == (True, False)
    now += 0.2
    up.on_signal(signal.SIGTERM, None)
    assert up.supervisor.kill_requested
