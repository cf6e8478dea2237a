"""What every test in memory may rely on."""

import gc
import os

import hypothesis
import pytest

# A few of many: `make test` looks at more, and TEST_EXAMPLES at as many as it says. A machine may be busy.
hypothesis.settings.register_profile("unit", max_examples=int(os.environ.get("TEST_EXAMPLES", "25")), deadline=None)
hypothesis.settings.load_profile("unit")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports and collection made: a sixth of the time of these tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_running_up(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the commands from the settings of a `make up` that runs in this folder: they would stay for other tests."""
    monkeypatch.setenv("DRM_DATA_DIR", str(tmp_path_factory.getbasetemp() / "no-up"))
