"""A second broker beside a test's own, to have partitions that lose their only leader while the others keep theirs."""

import shutil
import subprocess
from pathlib import Path

from drm_ingest.up.kafka import Kafka


class SecondBroker(Kafka):
    """Node 2 of the cluster that `first` controls; not a controller itself."""

    def __init__(self, directory: Path, first: Kafka) -> None:
        super().__init__(directory)
        self._first = first

    def prepare(self) -> None:
        super().prepare()
        properties = self.directory / "server.properties"
        changed = {
            "process.roles": "broker",
            "node.id": "2",
            "controller.quorum.voters": f"1@127.0.0.1:{self._first.controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
        }
        kept = [line for line in properties.read_text().splitlines() if line.partition("=")[0] not in changed]
        properties.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changed.items())]))
        data = self.directory / "data"
        written = (self._first.directory / "data" / "meta.properties").read_text().splitlines()
        cluster_id = next(line.partition("=")[2] for line in written if line.startswith("cluster.id="))
        if f"cluster.id={cluster_id}" in (data / "meta.properties").read_text():
            return
        shutil.rmtree(data)
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", properties.name]
        subprocess.run([*self._java(64), *tool], cwd=self.directory, check=True, capture_output=True, timeout=60)
