"""Every line on standard error is one JSON object, whoever wrote it.

Logging belongs to a whole process, so each test has a process of its own.
"""

import json
import os
import subprocess
import sys
from typing import Any

PREAMBLE = """
import asyncio, logging, warnings
import structlog
from drm_ingest import logs
from drm_ingest.settings import Settings
logs.configure(Settings(), "edge")
"""


def lines_of(code: str, **environment: str) -> list[dict[str, Any]]:
    own = os.environ | environment
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        capture_output=True,
        text=True,
        check=False,
        env=own,
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_mistyped_variable_is_a_line_without_its_value() -> None:
    [line] = lines_of("", DRM_EGDE_PORT="canary")
    assert (line["level"], line["variable"], line["meant"]) == ("warning", "DRM_EGDE_PORT", "DRM_EDGE_PORT")
    assert "canary" not in str(line)


def test_our_own_lines_carry_what_was_bound_and_passed() -> None:
    [line] = lines_of(
        "structlog.contextvars.bind_contextvars(request_id='r1');"
        "structlog.get_logger('drm_ingest.edge').info('refused', code='body_too_large')"
    )
    assert line.pop("pid") > 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "refused",
        "code": "body_too_large",
        "request_id": "r1",
        "level": "info",
        "logger": "drm_ingest.edge",
        "process": "edge",
    }


def test_lines_of_libraries_look_the_same() -> None:
    [line] = lines_of("logging.getLogger('aiokafka.conn').warning('lost %s', 'broker 1')")
    assert (line["event"], line["level"], line["logger"]) == ("lost broker 1", "warning", "aiokafka.conn")


def test_a_traceback_stays_within_its_line() -> None:
    [line] = lines_of("1 / 0")
    assert line["level"] == "critical"
    assert "ZeroDivisionError" in line["exception"]


def test_what_json_cannot_hold_is_logged_all_the_same() -> None:
    [line] = lines_of(r"structlog.get_logger().info('odd', text='\ud800', number=2**70, thing=object())")
    assert line["number"] == 2**70
    assert line["text"] == "\ud800"


def test_warnings_are_lines_too() -> None:
    [line] = lines_of("warnings.warn('old')")
    assert "old" in line["event"]


def test_a_task_that_failed_unseen_is_a_line() -> None:
    [line] = lines_of("""
async def main():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)
asyncio.run(main())
""")
    assert "ZeroDivisionError" in line["exception"]
