"""The soak of loadtests/soak.py, a minute of it: what an hour must show is asked of `make soak`."""

import asyncio
import sys
from pathlib import Path

import pytest
from tests.adversity.running import Running

NO_BOUND = "1000000"  # caches still fill in the first minutes: the slope of memory is for the hour


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_descriptors_and_tasks_are_back_after_a_minute_of_load_with_broken_connections(
    path: Running, tmp_path: Path
) -> None:
    soak = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtests.soak", "--ready", str(path.ready_file), "--minutes", "1", "--rate", "1500",
        "--mb-per-hour-max", NO_BOUND, "--file", str(tmp_path / "soak.csv"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    told = (await soak.communicate())[0].decode()
    assert soak.returncode == 0, told
