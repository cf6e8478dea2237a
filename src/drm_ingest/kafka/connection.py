"""How every Kafka client of ours connects: where, as whom, with which certificates."""

from typing import Any

from drm_ingest.settings import Settings


class KafkaUnreachable(Exception):
    """No bootstrap server answered; the message says which were asked and what to check."""


def connection(settings: Settings) -> dict[str, Any]:
    """Return the arguments of aiokafka's clients: bootstrap servers, TLS and SASL."""
    raise NotImplementedError
