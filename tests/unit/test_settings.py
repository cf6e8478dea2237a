"""Settings refuse at start what is wrong, and the documentation lists them all."""

import re

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from drm_ingest.__main__ import cli
from drm_ingest.settings import Settings, unknown


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_number_of_a_quantity_names_its_unit() -> None:
    numbers = [name for name, field in Settings.model_fields.items() if isinstance(field.default, int | float)]
    units = "bytes_max|records_max|events_max|messages|partitions|connections|hours|days|months|s|max|port"
    units += "|factor|replicas|events|share_max|letters_min"
    known = rf".*_({units})$"
    unclear = [
        name
        for name in numbers
        if not re.match(known, name) and not isinstance(Settings.model_fields[name].default, bool)
    ]
    assert unclear == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"topic_replication_factor": 1, "topic_min_insync_replicas": 2},
            "DRM_TOPIC_MIN_INSYNC_REPLICAS cannot exceed",
        ),
        ({"produce_deadline_s": 1}, "DRM_PRODUCE_REQUEST_TIMEOUT_S cannot exceed"),
        ({"event_bytes_max": 1 << 20}, "DRM_EVENT_BYTES_MAX cannot exceed"),
        ({"request_body_bytes_max": 1 << 30}, "DRM_REQUEST_BODY_BYTES_MAX cannot exceed"),
        ({"kafka_security_protocol": "SASL_SSL"}, "SASL needs"),
        ({"edge_port": 70_000}, "less than or equal to 65535"),
        ({"event_future_max_s": 1e12}, "less than or equal to"),
        ({"request_events_max": 0}, "greater than or equal to 1"),
        ({"topic_prefix": "a b"}, "should match pattern"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_start(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_mistyped_variable_is_told_with_the_one_that_may_be_meant() -> None:
    environment = ["DRM_EGDE_PORT", "DRM_EDGE_PORT", "drm_edge_host", "DRM_DATA_DIR", "DRM_UP_MADE", "DRM_QQQ", "PATH"]
    assert list(unknown(environment)) == [("DRM_EGDE_PORT", "DRM_EDGE_PORT"), ("DRM_QQQ", None)]


def test_a_command_says_which_variables_it_ignores() -> None:
    told = CliRunner(env={"DRM_EGDE_PORT": "9"}).invoke(cli, ["tail", "--help"])
    assert "DRM_EGDE_PORT is unknown and ignored; is DRM_EDGE_PORT meant?" in told.stderr


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().edge_port = 1  # type: ignore[misc]


def test_a_password_is_not_shown() -> None:
    settings = Settings(
        kafka_sasl_password=SecretStr("canary-1"), postgres_dsn=SecretStr("postgresql://u:canary-2@h/d")
    )
    assert "canary" not in repr(settings)


def test_no_password_is_shown_when_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRM_KAFKA_SASL_PASSWORD", "canary-1")
    monkeypatch.setenv("DRM_POSTGRES_DSN", "postgresql://u:canary-2@h/d")
    monkeypatch.setenv("DRM_TOPIC_REPLICATION_FACTOR", "1")
    with pytest.raises(ValidationError, match="cannot exceed") as raised:
        Settings()
    assert "canary" not in str(raised.value)
