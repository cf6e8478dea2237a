"""Whatever the documents allow or forbid is answered as they say; whatever comes, in whatever order, the ledger holds.

The seed is printed, and fixed by FUZZ_SEED.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test
from loadtests.clients import Client, Http, Ledger, WebSocket
from loadtests.traffic import Device, Entry
from loadtests.verify import quiet, verify
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.adversity.running import Running
from tests.conftest import run_aside

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture
def seed(seed: int) -> int:
    chosen = int(os.environ.get("FUZZ_SEED", seed))
    print(f"FUZZ_SEED={chosen}")
    return chosen


def bounded(examples: int, **more: Any) -> hypothesis.settings:
    phases = [Phase.explicit, Phase.generate]  # what fails is printed as it was sent
    return hypothesis.settings(
        max_examples=examples, deadline=None, database=None, phases=phases, print_blob=False,
        suppress_health_check=list(HealthCheck), **more,
    )  # fmt: skip


# -- nothing uncaught


@pytest.fixture
def quiet_logs(path: Running) -> Iterator[None]:
    """No process logs an error or a traceback meanwhile."""
    logs = [path.ready_file.parent / "data" / "logs" / f"{name}.log" for name in ("edge", "enrich", "attach", "serve")]
    sizes = [log.stat().st_size for log in logs]
    yield
    for log, size in zip(logs, sizes, strict=True):
        assert uncaught(log, size) == []


def uncaught(log: Path, start: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_bytes()[start:].splitlines()]
    return [line for line in lines if line["level"] in ("error", "critical") or "exception" in line]


# -- schemathesis over OpenAPI


@pytest.mark.row("fuzzing")
@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize(("process", "key"), [("edge", "sender_key"), ("serve", "admin_key")])
def test_every_answer_is_as_the_openapi_document_says(
    path: Running, process: str, key: str, examples: int, seed: int, seen: Callable[[str], None]
) -> None:
    url, sent = path.where[f"{process}_url"], 0
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {path.where[key]}"
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            for mode in MODES:

                @hypothesis.seed(seed)
                @bounded(examples)
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def check(case: schemathesis.Case[Any]) -> None:
                    nonlocal sent
                    sent += 1
                    answer = case.call(base_url=url, session=session, timeout=30)
                    if answer.status_code != 503:
                        case.validate_response(answer, checks=[not_a_server_error, *CHECKS])

                with suppress(Unsatisfiable) if mode is MODES[1] else nullcontext():  # what takes nothing has no wrong
                    check()
    run_aside(settled(path))
    seen(f"{sent} requests by the OpenAPI document of {process}, none broke it")


async def settled(path: Running) -> None:
    """Wait until everything that was taken is stored, for the tests that follow."""
    await quiet(path.where["kafka_bootstrap"], path.where["postgres_dsn"], "drm")


# -- a state machine of the whole path


@dataclass
class Sending:
    """What all steps of a run have in common."""

    path: Running
    draw: random.Random
    kill: bool
    ledger: Ledger = field(default_factory=lambda: Ledger(give_up_after_s=90))
    steps: int = 0

    def client(self, transport: str) -> Client:
        where = urlsplit(self.path.where["edge_url"])
        make = Http if transport == "http" else WebSocket
        return make(where.hostname or "", where.port or 0, self.path.where["sender_key"], self.ledger)


def machine(sending: Sending) -> type[RuleBasedStateMachine]:
    """Return a machine whose steps are sent over the path and written into the ledger."""
    transports = st.sampled_from(["http", "ws"])

    class Path(RuleBasedStateMachine):
        devices = Bundle("devices")

        @rule(target=devices)
        def a_device_appears(self) -> Device:
            sending.steps += 1
            name = f"fuzz-{sending.draw.getrandbits(64):x}"
            return Device(name, sending.draw.getrandbits(32), duplicates=0, invalid=0, conflicts=0)

        @rule(device=devices, transport=transports, count=st.integers(1, 40))
        def it_sends_new_events(self, device: Device, transport: str, count: int) -> None:
            self._send(device, transport, [device._make("new") for _ in range(count)])

        @rule(device=devices, transport=transports)
        def it_sends_what_no_schema_describes(self, device: Device, transport: str) -> None:
            self._send(device, transport, [device._make("unclassified")])

        @rule(device=devices, transport=transports)
        def it_sends_some_again(self, device: Device, transport: str) -> None:
            self._send(device, transport, [
                Entry(first.subject, first.id, first.hash, first.body, "repeat", "accepted")
                for first in device._settled
            ])  # fmt: skip

        @rule(device=devices, transport=transports)
        def it_sends_other_content_under_an_old_id(self, device: Device, transport: str) -> None:
            self._send(device, transport, [device._make("conflict", id_=old.id) for old in device._settled[:1]])

        @rule(device=devices, transport=transports, count=st.integers(1, 5))
        def it_sends_what_is_wrong(self, device: Device, transport: str, count: int) -> None:
            wrong = [device._make("invalid") for _ in range(count)]
            self._send(device, transport, [device._make("new"), *wrong, device._make("new")])

        if sending.kill:

            @rule(process=st.sampled_from(["edge", "enrich", "attach", "postgres", "kafka"]))
            def something_dies(self, process: str) -> None:
                sending.steps += 1
                if sending.draw.random() < 0.2:  # now and then: each takes seconds to come back
                    run_aside(sending.path.back(process, sending.path.kill(process)))

        def _send(self, device: Device, transport: str, entries: list[Entry]) -> None:
            sending.steps += 1
            if not entries:
                return

            async def send() -> None:
                client = sending.client(transport)
                try:
                    await client.send([entries])
                finally:
                    await client.close()

            run_aside(send())
            for entry in entries:
                device.settle(entry)

    return Path


@pytest.mark.row("fuzzing")
@pytest.mark.parametrize(
    ("runs", "steps", "kill"),
    [(6, 25, False), pytest.param(15, 50, True, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_whatever_is_sent_in_whatever_order_the_ledger_is_exact(
    path: Running, runs: int, steps: int, kill: bool, seed: int, seen: Callable[[str], None]
) -> None:
    sending = Sending(path, random.Random(seed), kill)
    steps_of = machine(sending)
    run_state_machine_as_test(hypothesis.seed(seed)(steps_of), settings=bounded(runs, stateful_step_count=steps))
    where = path.where

    async def check() -> None:
        findings = await verify(
            sending.ledger.entries, kafka_bootstrap=where["kafka_bootstrap"], postgres_dsn=where["postgres_dsn"],
            prefix="drm", metrics=where["metrics"],
        )  # fmt: skip
        assert not findings.counts, f"the ledger is not exact:\n{findings}"

    run_aside(check())
    kinds = {entry.kind for entry in sending.ledger.entries}
    assert {"new", "invalid"} <= kinds
    seen(f"{sending.steps} steps of a state machine, {len(sending.ledger.entries)} events: the ledger is exact")
