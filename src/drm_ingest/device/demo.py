"""`drm-ingest demo`: two customers, their devices' real recordings, a few purchases and ratings, and the two records.

The recordings are files of the `bokeh-sampledata` package, read as files: seven months of a wearable glucose monitor,
and a bike computer's ride at one reading a second.
"""

import csv
import gzip
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drm_ingest.device.portrait import PURCHASES, RATINGS, portrait, units_of
from drm_ingest.device.recording import Recording
from drm_ingest.device.send import GaveUp, Numbered, Sender, Sent
from drm_ingest.schema import Schemas

RIDE_STARTED_AT = datetime(2026, 5, 3, 7, 30, tzinfo=UTC)  # the recording tells only the time passed
MEASUREMENT = "device.measurement"
SEMICIRCLES_PER_DEGREE = 2**31 / 180  # the bike computer's own unit of position (Garmin FIT)


@dataclass(frozen=True, slots=True)
class Story:
    """One customer: who, with which device, and what happened."""

    ref: str
    name: str
    device: str
    model: str
    owner_since: str
    recording: Path
    facts: tuple[Mapping[str, Any], ...]  # events about the customer that involve no device

    def events(self) -> Iterator[Numbered]:
        """Yield the recording's events, then the facts."""
        read = _glucose if self.device.startswith("cgm") else _ride
        yield from read(self.recording, self.device)
        for number, fact in enumerate(self.facts, 1):
            yield 0, {"subject": f"party:demo:{self.ref}", "source": "shop", "id": f"{self.ref}-{number}", **fact}


def stories() -> list[Story]:
    """Return the two customers.

    Raises:
        FileNotFoundError: the package with the recordings is not installed.
    """
    spec = importlib.util.find_spec("bokeh_sampledata")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the recordings are not installed: pip install 'drm-ingest[demo]'")
    data = Path(spec.submodule_search_locations[0]) / "_data"
    return [
        Story(
            "alva", "Alva Lindqvist", "cgm-4411", "Glucose monitor", "2010-03-01T00:00:00Z", data / "CGM.csv.gz",
            (
                _purchase("2010-03-01T10:12:00Z", "S-1001", 129900, "CGM-STARTER", "Glucose monitor, starter set"),
                _purchase("2010-06-14T16:40:00Z", "S-1377", 45900, "CGM-SENSOR-10", "Sensors, ten"),
                _rating("2010-04-02T09:00:00Z", "csat", 4),
                _rating("2010-09-20T18:30:00Z", "nps", 9),
            ),
        ),
        Story(
            "ben", "Ben Okafor", "bike-0802", "Bike computer", "2026-04-18T00:00:00Z", data / "cycling.csv.gz",
            (
                _purchase("2026-04-18T13:05:00Z", "S-9120", 34900, "BC-8", "Bike computer"),
                _rating("2026-05-03T12:00:00Z", "csat", 5),
                _rating("2026-05-03T12:01:00Z", "ces", 6),
            ),
        ),
    ]  # fmt: skip


def run(edge_url: str, serve_url: str, sender_key: str, admin_key: str, *, patience_s: float = 180.0) -> int:
    """Tell both stories and print both records; return 0 only if every count is that of the recordings.

    Safe to repeat: whatever is there already stays as it is.
    """
    console = Console()
    told = stories()
    with httpx.Client(base_url=serve_url, headers={"authorization": f"Bearer {admin_key}"}, timeout=30) as serve:
        parties = {story.ref: _introduce(serve, story) for story in told}
        expected = {}
        columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Sender(edge_url, sender_key) as sender, Progress(*columns, console=console) as progress:
            for story in told:
                events = list(story.events())
                expected[story.ref] = Counter(event["type"] for _, event in events)
                sent = Sent()
                bar = progress.add_task(story.device, total=len(events))
                try:
                    for count in sender.send(events, sent):
                        progress.advance(bar, count)
                except GaveUp as error:
                    console.print(f"stopped: {error}", style="red", highlight=False)
                    return 1
                if sent.rejected:
                    console.print(f"rejected: {dict(sent.examples)}", style="red", highlight=False)
                    return 1
        records = {story.ref: _record(serve, parties[story.ref], expected[story.ref], patience_s) for story in told}
        facts = {story.ref: _facts(serve, parties[story.ref]) for story in told}
    units = units_of(Schemas.load(), MEASUREMENT)
    for story in told:
        console.print(portrait(records[story.ref], facts[story.ref], expected[story.ref], units))
    wrong = [story.name for story in told if records[story.ref]["events_by_type"] != dict(expected[story.ref])]
    if wrong:
        console.print(f"These records do not have the counts of the recordings: {', '.join(wrong)}", style="red")
        return 1
    console.print("Both records have exactly the counts of the recordings.", style="green")
    return 0


def run_beside_own_up(data_dir: Path) -> int:
    """Do the same against a `drm-ingest up` that is started for it and stopped afterwards."""
    ready = data_dir / "demo.json"  # not the one in the folder, which one that was killed may have left
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(data_dir), "--ready-file", str(ready)]
    with subprocess.Popen(command) as up:  # noqa: S603
        try:
            while not ready.exists():
                if up.poll() is not None:
                    return up.returncode
                time.sleep(0.2)
            where = json.loads(ready.read_text())
            return run(where["edge_url"], where["serve_url"], where["sender_key"], where["admin_key"])
        finally:
            up.send_signal(signal.SIGTERM)


def _introduce(serve: httpx.Client, story: Story) -> str:
    """Make the customer and the relation to the device, unless they are there; return the customer's id."""
    answer = serve.post("/v1/parties", json={"kind": "customer", "name": story.name, "refs": {"demo": story.ref}})
    if answer.status_code == httpx.codes.CONFLICT:
        answer = serve.get("/v1/parties", params={"ref": f"demo:{story.ref}"}).raise_for_status()
        party: str = answer.json()["items"][0]["id"]
    else:
        party = answer.raise_for_status().json()["id"]
    serve.put(f"/v1/devices/{story.device}", json={"model": story.model}).raise_for_status()
    relation = {"subject": story.device, "role": "owner", "party": party, "valid_from": story.owner_since}
    answer = serve.post("/v1/relationships", json=relation)
    if answer.status_code != httpx.codes.CONFLICT:  # it holds already
        answer.raise_for_status()
    return party


def _record(serve: httpx.Client, party: str, expected: Counter[str], patience_s: float) -> Any:
    """Read the record until it has everything, or for as long as patience lasts."""
    deadline = time.monotonic() + patience_s
    while True:
        record = serve.get(f"/v1/parties/{party}").raise_for_status().json()
        if record["events_by_type"] == dict(expected) or time.monotonic() > deadline:
            return record
        time.sleep(0.5)


def _facts(serve: httpx.Client, party: str) -> Any:
    """Read what happened to the customer without a device, newest first."""
    wanted = httpx.QueryParams({"type": [PURCHASES, RATINGS], "limit": 10})
    timeline = serve.get(f"/v1/parties/{party}/timeline", params=wanted).raise_for_status().json()
    return [item["event"] for item in timeline["items"]]


def _purchase(at: str, order: str, minor: int, sku: str, name: str) -> Mapping[str, Any]:
    lines = [{"sku": sku, "name": name, "quantity": 1, "total_minor": minor}]
    data = {"order": order, "currency": "SEK", "total_minor": minor, "lines": lines}
    return {"type": PURCHASES, "time": at, "data": data}


def _rating(at: str, scale: str, score: int) -> Mapping[str, Any]:
    return {"type": RATINGS, "time": at, "data": {"scale": scale, "score": score}}


def _glucose(path: Path, device: str) -> Iterator[Numbered]:
    columns = {"glucose": "glucose", "isig": "sensor_current"}
    recording = Recording(
        path, type=MEASUREMENT, subject=device, time_column="datetime", columns=columns, absent=("nil",),
        units={"sensor_current": "nA"},
    )  # fmt: skip
    return recording.events()


def _ride(path: Path, device: str) -> Iterator[Numbered]:
    columns = {name: name for name in ("altitude", "power", "cadence", "distance", "speed")}
    recording = Recording(
        path, type=MEASUREMENT, subject=device, time_column="time", starts_at=RIDE_STARTED_AT, columns=columns
    )
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for (line, event), row in zip(recording.events(), csv.DictReader(file), strict=True):
            event["data"]["latitude"] = round(int(row["position_lat"]) / SEMICIRCLES_PER_DEGREE, 7)
            event["data"]["longitude"] = round(int(row["position_long"]) / SEMICIRCLES_PER_DEGREE, 7)
            yield line, event
