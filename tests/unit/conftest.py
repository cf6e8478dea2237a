"""What every test in memory may rely on."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_running_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the commands from the settings of a `make up` that runs in this folder: they would stay for other tests."""
    monkeypatch.setenv("DRM_DATA_DIR", str(tmp_path / "no-up"))
