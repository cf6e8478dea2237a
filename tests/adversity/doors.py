"""A broker and a server with doors of their own for those who come over a network that a test hurts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.brokers import reconfigure

from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres


@dataclass(frozen=True)
class Door:
    """Where a broker listens, and the address under which it can be reached there; clients go on to that."""

    address: str
    port: int
    advertised: str


class BrokerWithDoors(Kafka):
    """Beside its ordinary port, one more for each door."""

    def __init__(self, directory: Path, doors: Mapping[str, Door]) -> None:
        super().__init__(directory)
        self._doors = doors

    def prepare(self) -> None:
        super().prepare()
        own = f"PLAINTEXT://127.0.0.1:{self.port}"
        listeners = [own, *(f"{name}://{door.address}:{door.port}" for name, door in self._doors.items())]
        advertised = [own, *(f"{name}://{door.advertised}" for name, door in self._doors.items())]
        reconfigure(
            self,
            {
                "listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{self.controller_port}"]),
                "advertised.listeners": ",".join(advertised),
                "listener.security.protocol.map": ",".join(
                    f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", *self._doors)
                ),
            },
        )


class PostgresAt(Postgres):
    """Listens at one more address, and lets in who comes from its network."""

    def __init__(self, directory: Path, address: str, network: str) -> None:
        super().__init__(directory)
        self._address = address
        self._network = network

    def prepare(self) -> None:
        super().prepare()
        rules = self._data / "pg_hba.conf"
        rule = f"host all all {self._network} scram-sha-256\n"
        if rule not in rules.read_text():
            rules.write_text(rules.read_text() + rule)
        self.child.argv = [argument.replace("127.0.0.1", f"127.0.0.1,{self._address}") for argument in self.child.argv]


def doors_for(names: list[str], address: str, advertised: Mapping[str, str]) -> dict[str, Door]:
    """Return a door for each name, all at one address."""
    taken: list[int] = []
    for _ in names:
        taken.append(free_port(taken))
    return {
        name.upper(): Door(address, port, advertised.get(name, f"{address}:{port}"))
        for name, port in zip(names, taken, strict=True)
    }
