"""How every Kafka client of ours connects: where, as whom, with which certificates."""

import asyncio
import contextlib
import ssl
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

from drm_ingest import silence
from drm_ingest.settings import Settings

log = structlog.get_logger(__name__)

CLIENT_ID = "drm-ingest"
STOP_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 3.0  # of a reader: one broker that hangs must not keep it from asking the next
SILENT_LOOKS = 6  # more seconds than a broker waits for the replicas of a commit (offsets.commit.timeout.ms)
WAITS = {JoinGroupRequest.API_KEY, SyncGroupRequest.API_KEY}  # answered when the others of the group are there


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


class Hearing:
    """Hangs up on brokers that owe one of aiokafka's clients an answer and say nothing, so that it asks the others.

    Left alone it waits as long as a group may take to come together, for a broker that is frozen or whose machine is
    gone without a word; and then again as long to connect to it, under a lock that keeps it from the others.
    """

    def __init__(self, client: AIOKafkaClient, request_timeout_s: float) -> None:
        """`request_timeout_s` is for a whole answer, however slowly it comes."""
        self._client = client
        self._looks: dict[AIOKafkaConnection, tuple[object, int]] = {}
        connect = client._get_conn

        async def connect_in_time(*arguments: Any, **named: Any) -> AIOKafkaConnection | None:
            got: AIOKafkaConnection | None = await connect(*arguments, **named)
            if got is not None:
                got._request_timeout = request_timeout_s
            return got

        client._request_timeout_ms = round(CONNECT_TIMEOUT_S * 1000)  # it has one for both
        client._get_conn = connect_in_time

    def look(self) -> None:
        """Look at every connection; call it every second. Looks are counted, since what did not run heard nothing."""
        self._begin_anew()
        looks: dict[AIOKafkaConnection, tuple[object, int]] = {}
        for connection in list(self._client._conns.values()):
            owed = connection._requests
            if not owed or any(request.API_KEY in WAITS for _, request, _ in owed):
                continue
            heard = owed[0][0], len(connection._reader._buffer)
            before, times = self._looks.get(connection, (None, 0))
            looks[connection] = heard, (times + 1 if heard == before else 0)
            if looks[connection][1] >= SILENT_LOOKS:
                log.warning("a broker does not answer: hanging up", broker=f"{connection.host}:{connection.port}")
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
        self._looks = looks

    def _begin_anew(self) -> None:
        """Keep the client looking for brokers: whatever it asks for waits for that, and without a bound.

        It knows only errors of Kafka and of the system, but uvloop has RuntimeError for a write to what was just reset.
        """
        looking = self._client._sync_task
        if looking is not None and looking.done() and not looking.cancelled():
            log.warning("looking for brokers ended: beginning anew", error=repr(looking.exception()))
            self._client._sync_task = asyncio.create_task(self._client._md_synchronizer())


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
