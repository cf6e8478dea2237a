"""`drm-ingest up`: a real Kafka, a real Postgres and every process of ours, on this machine, until Ctrl-C."""

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from asyncpg import PostgresError
from pydantic import ValidationError
from rich.console import Console

from drm_ingest.kafka.topics import Topics
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.postgres.pool import connect
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings, refused
from drm_ingest.up import probe
from drm_ingest.up.child import Child, StartFailed
from drm_ingest.up.data_dir import MADE, DataDir, DataDirBusy, not_made_by_up, write_whole
from drm_ingest.up.fetch import FetchFailed
from drm_ingest.up.greeting import greeting
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import is_free
from drm_ingest.up.postgres import Postgres
from drm_ingest.up.server import Server
from drm_ingest.up.supervisor import Member, StopRequested, Supervisor

PROCESSES = ("edge", "enrich", "attach", "serve")
PORT_OFFSETS = {"edge": 0, "serve": 1, "enrich": 2, "attach": 3}
KEYS = {"sender_key": ("quickstart", "sender"), "admin_key": ("admin", "admin")}  # the sender and role of each

# How long each may take to stop, in seconds: in all less than the 15 that a person waits.
SHARES_S = {"edge": 3.0, "enrich": 2.0, "attach": 2.5, "serve": 2.0, "kafka": 2.5, "postgres": 2.0}
DRAIN_TIMEOUT_S = 2.0  # what our processes are told; below their share
AGAIN_S = 1.0  # a terminal, make and a shell each pass a signal on: within that it is the same request
OPEN_FILES = 65_536
EXAMPLE_TYPE = "device.measurement"


class Up:
    """The one-machine runtime, wired; `run` is its life."""

    def __init__(self, data_dir: Path, port: int, ready_file: Path | None, environment: Mapping[str, str]) -> None:
        self.data_dir = DataDir(data_dir.absolute())
        self.port = port
        self.ready_files = {self.data_dir.ready_file, *([ready_file.absolute()] if ready_file else [])}
        self.given = not_made_by_up(environment)
        self.environment = {"PYTHONUNBUFFERED": "1", **self.given}
        self.console = Console()
        self.supervisor = Supervisor(self.console, on_change=self.publish)
        self.postgres: Postgres | None = None  # our own, if it is
        self.logins: dict[str, str] = {}  # the DSN of each process
        self.complete = False
        self.fetching = False
        self.asked_to_stop_at: float | None = None

    def run(self) -> int:
        """Return the exit code: 0 after a stop that was asked for, 1 when something could not be started."""
        try:
            self.data_dir.acquire()
        except (DataDirBusy, OSError) as error:
            return self.complain(error)
        self.withdraw()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                signal.signal(number, self.on_signal)
        failure: Exception | None = None
        try:
            self.start()
            self.supervisor.watch()
        except StopRequested:
            pass
        except ValidationError as error:
            failure = ValueError("; ".join(what for _, what in refused(error)))
        except (FetchFailed, OSError, PostgresError, StartFailed) as error:
            failure = error
        finally:
            self.stop()
        return 0 if failure is None else self.complain(failure)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The first asks for a stop; a second one, not the same request passed on, kills."""
        now = time.monotonic()
        if self.asked_to_stop_at is None:
            self.asked_to_stop_at = now
        elif now - self.asked_to_stop_at > AGAIN_S:
            self.supervisor.kill_requested = True
        self.supervisor.stop_requested = True
        if self.fetching:
            self.fetching = False
            raise StopRequested

    def start(self) -> None:
        self.say(f"[bold]drm-ingest up[/]  data in {self.data_dir.path}")
        for name, offset in PORT_OFFSETS.items():
            self.environment[f"DRM_{name.upper()}_PORT"] = str(self.port + offset)
            if not is_free(self.port + offset):
                raise OSError(
                    f"port {self.port + offset}, meant for {name}, is taken: choose another with --port "
                    f"({self.port} to {self.port + 3} are used)"
                )
        self.settings()  # a wrong setting is refused before anything starts
        self.environment.setdefault("DRM_DRAIN_TIMEOUT_S", str(DRAIN_TIMEOUT_S))
        self.start_servers()
        settings = self.settings()
        for task in ("migrate", "topics"):
            self.supervisor.run(self.child(task))
        asyncio.run(self.register_keys(settings))
        if self.postgres is not None:
            self.logins = asyncio.run(self.postgres.ensure_logins())
        self.supervisor.start([self.process(name) for name in PROCESSES])
        self.complete = True
        self.data_dir.publish_environment(self.tool_environment())
        self.publish()
        self.greet(settings)

    def start_servers(self) -> None:
        """Start our own Kafka and Postgres, each unless the environment names one."""
        ours = [self.port + offset for offset in PORT_OFFSETS.values()]
        ports = self.data_dir.ports(["kafka", "kafka_controller", "postgres"], taken=ours)
        kafka = postgres = None
        members = []
        if "DRM_KAFKA_BOOTSTRAP" in self.given:
            self.say_whose("Kafka", "DRM_KAFKA_BOOTSTRAP")
        else:
            kafka = Kafka(
                self.data_dir.path / "kafka",
                port=ports["kafka"],
                controller_port=ports["kafka_controller"],
                log_file=self.data_dir.log_file("kafka"),
                console=self.console,
            )
            members.append(self.server("kafka", kafka, self.interruptible(kafka.prepare)))
        if "DRM_POSTGRES_DSN" in self.given:
            self.say_whose("Postgres", "DRM_POSTGRES_DSN")
        else:
            folder = self.data_dir.path / "postgres"
            postgres = Postgres(folder, port=ports["postgres"], log_file=self.data_dir.log_file("postgres"))
            members.append(self.server("postgres", postgres, postgres.prepare))
        self.supervisor.start(members)
        if kafka is not None:
            self.environment["DRM_KAFKA_BOOTSTRAP"] = kafka.bootstrap
            for name in ("DRM_TOPIC_REPLICATION_FACTOR", "DRM_TOPIC_MIN_INSYNC_REPLICAS"):
                self.environment[name] = "1"
        self.postgres = postgres
        if postgres is not None:
            self.environment["DRM_POSTGRES_DSN"] = postgres.dsn

    def say_whose(self, server: str, variable: str) -> None:
        self.say(f"  {server} is yours: {variable} is set (unset it, and up starts one of its own)")

    def server(self, name: str, server: Server, prepare: Callable[[], None]) -> Member:
        def not_ready() -> str | None:
            return None if server.ready() else "it does not answer yet"

        return Member(name, server.child, not_ready, prepare, share_s=SHARES_S[name])

    def interruptible(self, work: Callable[[], None]) -> Callable[[], None]:
        """Let a signal break off what can take minutes, a first fetch."""

        def interruptible_work() -> None:
            self.fetching = True
            try:
                work()
            finally:
                self.fetching = False

        return interruptible_work

    def process(self, name: str) -> Member:
        port = self.port + PORT_OFFSETS[name]
        return Member(name, self.child(name), lambda: probe.not_ready(port), share_s=SHARES_S[name])

    def child(self, command: str) -> Child:
        return Child(
            command,
            [sys.executable, "-m", "drm_ingest", command],
            log_file=self.data_dir.log_file(command),
            pid_file=self.data_dir.pid_file(command),
            env=self.environment | ({"DRM_POSTGRES_DSN": self.logins[command]} if command in self.logins else {}),
        )

    def settings(self) -> Settings:
        """What our processes will read from their environment."""
        prefix = "DRM_"
        own = {
            name[len(prefix) :].lower(): value for name, value in self.environment.items() if name.startswith(prefix)
        }
        return Settings.model_validate(own)

    async def register_keys(self, settings: Settings) -> None:
        connection = await connect(settings, "drm up")
        try:
            for key, (sender, role) in KEYS.items():
                await ensure_key(connection, sender, role, self.data_dir.key(key))
        finally:
            await connection.close()

    def publish(self) -> None:
        """Write the ready file anew, once there is something to tell."""
        if self.complete:
            text = json.dumps(self.ready(), indent=2) + "\n"
            for file in self.ready_files:
                write_whole(file, text)

    def withdraw(self) -> None:
        """Nothing is ready: say so to whoever looks."""
        self.data_dir.withdraw_environment()
        for file in self.ready_files:
            file.unlink(missing_ok=True)

    def ready(self) -> dict[str, Any]:
        pids = self.supervisor.pids
        return {
            "edge_url": self.url("edge"),
            "serve_url": self.url("serve"),
            **{key: self.data_dir.key(key) for key in KEYS},
            "kafka_bootstrap": self.environment["DRM_KAFKA_BOOTSTRAP"],
            "postgres_dsn": self.environment["DRM_POSTGRES_DSN"],
            "metrics": {name: self.url(name) + "/metrics" for name in PROCESSES},
            "pids": {name: pids.get(name) for name in (*PROCESSES, "kafka", "postgres")},
        }

    def url(self, process: str) -> str:
        return f"http://127.0.0.1:{self.port + PORT_OFFSETS[process]}"

    def tool_environment(self) -> dict[str, str]:
        """What a tool needs to know of this runtime: our settings, and where and as whom to ask."""
        own = {name: value for name, value in self.environment.items() if name.startswith("DRM_")}
        told = own | {
            "DRM_DATA_DIR": str(self.data_dir.path),
            "DRM_EDGE_URL": self.url("edge"),
            "DRM_SERVE_URL": self.url("serve"),
            "DRM_SENDER_KEY": self.data_dir.key("sender_key"),
            "DRM_ADMIN_KEY": self.data_dir.key("admin_key"),
        }
        made = {name: value for name, value in told.items() if self.given.get(name) != value}
        return told | {MADE: json.dumps(made)}

    def greet(self, settings: Settings) -> None:
        family = Schemas.load(settings.schemas_dir).family(EXAMPLE_TYPE)
        self.say(
            greeting(
                edge_url=self.url("edge"),
                serve_url=self.url("serve"),
                metrics={name: self.url(name) + "/metrics" for name in PROCESSES},
                kafka_bootstrap=settings.kafka_bootstrap,
                data_dir=self.data_dir,
                sender_key=self.data_dir.key("sender_key"),
                topic=Topics.of(settings).events(family),
                tools_need_environment=settings.kafka_security_protocol != "PLAINTEXT",
            )
        )

    def stop(self) -> None:
        self.withdraw()
        if self.supervisor.members:
            self.say("\nstopping …")
        self.supervisor.stop()

    def say(self, text: str) -> None:
        self.supervisor.say(text)

    def complain(self, error: Exception) -> int:
        self.console.print(f"drm-ingest up: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1


def _allow_many_files() -> None:
    """Raise the soft limit that what we start inherits: a connection of the edge is a file, as is a Kafka segment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(data_dir: Path, port: int, ready_file: Path | None) -> int:
    """Run until asked to stop; returns the exit code."""
    _allow_many_files()
    return Up(data_dir, port, ready_file, os.environ).run()
