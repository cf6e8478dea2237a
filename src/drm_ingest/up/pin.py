"""Resolve Kafka's jars anew and write `kafka.lock`: `python -m drm_ingest.up.pin`, after changing a version here."""

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import Artifact, MavenContext

KAFKA = "4.3.1"
LOG4J = "2.25.3"

# Named one by one because the resolver would otherwise take an older kafka-clients from somebody's dependencies.
WITH_DEPENDENCIES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    f"org.apache.kafka:kafka-clients:{KAFKA}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
)
# Its dependencies are Kafka Connect, Jetty and Jersey: thirty jars no broker loads.
ALONE = (f"org.apache.kafka:kafka-tools:{KAFKA}",)


def _line(artifact: Artifact) -> str:
    content = artifact.resolve().read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{artifact.groupId}:{artifact.artifactId}:{artifact.version} {digest} {len(content)}"


def main() -> None:
    with tempfile.TemporaryDirectory() as repository, ThreadPoolExecutor(8) as executor:
        context = MavenContext(repo_cache=Path(repository), timeout=60)
        inputs, transitive = context.resolver.resolve([context.create_dependency(name) for name in WITH_DEPENDENCIES])
        artifacts = [dependency.artifact for dependency in (*inputs, *transitive)]
        artifacts += [context.create_dependency(name).artifact for name in ALONE]
        lines = ["# group:artifact:version sha256 bytes; written by `python -m drm_ingest.up.pin`"]
        lines += executor.map(_line, artifacts)
        Path(__file__).with_name("kafka.lock").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
