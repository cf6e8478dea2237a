"""How every Kafka client of ours connects: where, as whom, with which certificates."""

import asyncio
import contextlib
import ssl
from typing import Any
from weakref import WeakSet

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError

from drm_ingest import silence
from drm_ingest.settings import Settings

CLIENT_ID = "drm-ingest"
STOP_TIMEOUT_S = 2.0


class KafkaUnreachable(Exception):
    """No bootstrap server answered; the message says which were asked and what to check."""

    def __init__(self, settings: Settings, reason: object) -> None:
        if isinstance(reason, KafkaConnectionError):
            reason = "no connection can be made"  # what it says itself is a list of address families
        super().__init__(
            f"Kafka does not answer at {settings.kafka_bootstrap} ({settings.kafka_security_protocol}): {reason}. "
            "Check that it runs, and DRM_KAFKA_BOOTSTRAP, DRM_KAFKA_SECURITY_PROTOCOL and the DRM_KAFKA_SASL_* and "
            "DRM_KAFKA_SSL_* settings."
        )


def connection(settings: Settings) -> dict[str, Any]:
    """Return the arguments that aiokafka's clients share: bootstrap servers and everything of `security`."""
    return {"bootstrap_servers": settings.kafka_bootstrap, **security(settings)}


def security(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a single connection: client id, TLS, SASL.

    Raises:
        KafkaUnreachable: a certificate or key file cannot be read.
    """
    arguments: dict[str, Any] = {
        "client_id": CLIENT_ID,
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": _tls(settings) if settings.kafka_security_protocol.endswith("SSL") else None,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        arguments |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return arguments


def end_silence(opened: AIOKafkaConnection, settings: Settings) -> None:
    """Let this connection end when the broker acknowledges nothing for `connection_silent_max_s`."""
    if opened.connected():
        silence.end_silence(opened._writer.transport, settings.connection_silent_max_s)


def end_silences(client: AIOKafkaClient, settings: Settings) -> None:
    """Do so with every connection that one of aiokafka's clients makes from now on; it has no place for it."""
    get = client._get_conn
    done: WeakSet[AIOKafkaConnection] = WeakSet()

    async def get_ending(*arguments: Any, **named: Any) -> AIOKafkaConnection | None:
        got: AIOKafkaConnection | None = await get(*arguments, **named)
        if got is not None and got not in done:
            end_silence(got, settings)
            done.add(got)
        return got

    client._get_conn = get_ending


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stop one of aiokafka's consumers that is in no group; one that does not hear it is told again.

    Its fetcher, told to end in the moment in which its partitions change, takes that for the end of a request for the
    old ones and goes on for ever, and `consumer.stop` waits for it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await consumer.stop()


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
        if settings.kafka_ssl_cert_file:
            context.load_cert_chain(settings.kafka_ssl_cert_file, settings.kafka_ssl_key_file)
    except OSError as error:  # ssl.SSLError is one too
        raise KafkaUnreachable(settings, f"a file of DRM_KAFKA_SSL_* cannot be used ({error})") from error
    return context
