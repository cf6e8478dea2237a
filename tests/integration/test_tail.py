"""`drm-ingest tail` shows what arrives, as a person or a program at a terminal would run it."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import orjson
import pytest
from aiokafka import ConsumerRecord

from drm_ingest.errors import EventCode
from drm_ingest.kafka.dead_letters import DeadLetter, outgoing
from drm_ingest.kafka.topics import Topics, create
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings


@pytest.fixture
async def topics(settings: Settings) -> Topics:
    await create(settings, Schemas.load().families)
    return Topics.of(settings)


async def write(settings: Settings, topic: str, type_: str, subject: str, *ids: str) -> None:
    writer = Writer(settings, Metrics("enrich"))
    await writer.start()
    try:
        await writer.write(
            Outgoing(
                topic,
                writer.partition_for(topic, subject.encode()),
                subject.encode(),
                orjson.dumps(
                    {"specversion": "1.0", "id": id_, "type": type_, "subject": subject, "data": {"temperature": 21.5},
                     "occurredat": "2026-11-22T10:00:00Z", "partyroles": "owner:8a1f"}
                ),
            )
            for id_ in ids
        )  # fmt: skip
    finally:
        await writer.stop(5)


class Tail:
    """One run of the command, which is known to miss nothing from when it is entered."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._environment = environment
        self._arguments = arguments

    async def __aenter__(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", "tail", *self._arguments,
            env=self._environment, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        self.said = ""
        while "Ctrl-C ends it" not in self.said:
            line = await self._process.stderr.readline()
            assert line, self.said
            self.said += line.decode()
        return self._process

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


async def ids(process: asyncio.subprocess.Process) -> list[str]:
    output, _ = await process.communicate()
    return [orjson.loads(line)["id"] for line in output.splitlines()]


async def test_it_shows_what_arrives_from_now_on_as_one_json_document_a_line(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "before")
    async with Tail(environment, "device.measurement", "--limit", "2") as process:
        await write(settings, topics.events("measurement"), "device.other", "meter-7", "another type")
        await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "one", "two", "three")
        assert await ids(process) == ["one", "two"]
    assert process.returncode == 0


async def test_it_shows_one_device_from_the_beginning(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    for subject in ("meter-1", "meter-2", "meter-3", "meter-4"):
        await write(settings, topics.events("measurement"), "device.measurement", subject, f"of {subject}")
    arguments = ("measurement", "--subject", "meter-3", "--from-beginning", "--timeout", "3")
    async with Tail(environment, *arguments) as process:
        assert await ids(process) == ["of meter-3"]
    assert process.returncode == 0


async def test_people_see_when_who_and_what(settings: Settings, topics: Topics, environment: dict[str, str]) -> None:
    await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "one")
    arguments = ("measurement", "--pretty", "--from-beginning", "--limit", "1")
    async with Tail(environment, *arguments) as process:
        output, _ = await process.communicate()
    assert output.decode().splitlines() == [
        "2026-11-22T10:00:00Z  meter-7  device.measurement",
        '  {"temperature":21.5}',
        "  id=one  partyroles=owner:8a1f",
    ]


async def test_a_type_without_a_schema_is_looked_for_among_the_unclassified(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    run = Tail(environment, "com.example.new", "--limit", "1")
    async with run as process:
        await write(settings, topics.events("unclassified"), "com.example.other", "meter-7", "other")
        await write(settings, topics.events("unclassified"), "com.example.new", "meter-7", "new")
        assert await ids(process) == ["new"]
    assert "com.example.new has no schema here; " in run.said


async def test_a_type_that_nobody_knows_is_told_with_what_may_be_meant(
    topics: Topics, environment: dict[str, str]
) -> None:
    for mistyped, meant in (
        ("device.measurment", "device.measurement"), ("purchace", "commerce.purchase"), ("dead_letters", "dead-letters")
    ):  # fmt: skip
        run = Tail(environment, mistyped, "--timeout", "0.1")
        async with run as process:
            assert await ids(process) == []
        assert f"{mistyped} has no schema here (did you mean {meant}" in run.said


async def test_dead_letters_are_shown_with_why_and_where_they_were_read(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    read = ConsumerRecord(
        topics.events("measurement"), 2, 41, 0, 0, b"meter-7", b'{"id": "m-1\xff"}', None, 7, 10, [("h", b"1")]
    )
    letter = DeadLetter(read, "attach", EventCode.ID_CONFLICT, detail="the first one came at ten")
    writer = Writer(settings, Metrics("attach"))
    await writer.start()
    try:
        await writer.write([outgoing(writer, topics, letter)])
    finally:
        await writer.stop(5)
    async with Tail(environment, "dead-letters", "--from-beginning", "--limit", "1") as process:
        output, _ = await process.communicate()
    assert orjson.loads(output) == {
        "key": "meter-7", "stage": "attach", "code": "id_conflict", "detail": "the first one came at ten",
        "topic": topics.events("measurement"), "partition": "2", "offset": "41", "value": '{"id": "m-1\\xff"}',
    }  # fmt: skip
    async with Tail(environment, "dead-letters", "--from-beginning", "--limit", "1", "--pretty") as process:
        output, _ = await process.communicate()
    when, *rest = output.decode().splitlines()
    assert when.split()[1:] == ["meter-7", "id_conflict"]
    assert rest == [
        "  the first one came at ten",
        f"  set aside by attach, read from {topics.events('measurement')}/2/41",
        '  {"id": "m-1\\xff"}',
    ]


async def test_an_environment_loaded_from_an_up_that_has_stopped_is_known_as_such(tmp_path: Path) -> None:
    made = {"DRM_KAFKA_BOOTSTRAP": "127.0.0.1:9", "DRM_DATA_DIR": str(tmp_path / "elsewhere")}
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "tail", "measurement",
        env={**own, **made, "DRM_UP_MADE": json.dumps(made)}, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert said.startswith(f"no running `drm-ingest up` found in {tmp_path / 'elsewhere'}; ".encode())


@pytest.mark.parametrize("command", [["tail", "measurement", "--timeout", "5"], ["doctor"]])
async def test_where_no_up_runs_it_says_so_first_and_nothing_in_a_librarys_words(
    command: list[str], tmp_path: Path
) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", *command, env=own, cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    _, said = await process.communicate()
    assert said.startswith(b"no running `drm-ingest up` found in .drm; cd there, or set DRM_DATA_DIR, or DRM_KAFKA_")
    assert b"AddressFamily" not in said
    assert b"Unable connect" not in said


async def test_too_few_within_the_time_is_exit_code_1(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "one")
    arguments = ("measurement", "--from-beginning", "--limit", "2", "--timeout", "2")
    async with Tail(environment, *arguments) as process:
        assert await ids(process) == ["one"]
    assert process.returncode == 1


async def test_a_reader_that_leaves_ends_it_without_a_complaint(
    settings: Settings, topics: Topics, environment: dict[str, str]
) -> None:
    async with Tail(environment, "measurement") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "one")
        assert b'"one"' in await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        while process.returncode is None:
            await write(settings, topics.events("measurement"), "device.measurement", "meter-7", "again")
            await asyncio.sleep(0.1)
        assert await process.stderr.read() == b""
    assert process.returncode == 0


async def test_a_topic_that_is_not_there_is_said_with_what_to_do(environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "tail", "measurement", env=environment, stdout=PIPE, stderr=PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"run `drm-ingest topics`" in said
