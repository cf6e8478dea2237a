"""Every setting of every process: one frozen object, read from the environment, refused at start when wrong.

Each field is the environment variable `DRM_<NAME>`; the unit is the last part of the name.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KiB = 1024
MiB = 1024 * KiB

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """The whole configuration; pass it down, never read the environment elsewhere."""

    # What is wrong is told without what was given: passwords would be among it.
    model_config = SettingsConfigDict(
        env_prefix="DRM_", frozen=True, extra="ignore", validate_default=True, hide_input_in_errors=True
    )

    # -- Kafka: where, and as whom ------------------------------------------------------------------------------
    kafka_bootstrap: str = Field("127.0.0.1:9092", description="host:port, several separated by commas")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    kafka_sasl_username: str | None = Field(None, description="needed with SASL")
    kafka_sasl_password: SecretStr | None = Field(None, description="needed with SASL")
    kafka_ssl_ca_file: Path | None = Field(None, description="default: the system's authorities")
    kafka_ssl_cert_file: Path | None = Field(None, description="our own certificate, for mutual TLS")
    kafka_ssl_key_file: Path | None = Field(None, description="its key")

    # -- Kafka: topics ------------------------------------------------------------------------------------------
    topic_prefix: str = Field("drm", pattern=r"^[a-zA-Z0-9._-]{1,100}$", description="first part of every topic's name")
    topic_partitions: Count = Field(6, le=1000, description="of the ingress and of every family; never changed later")
    topic_replication_factor: Count = Field(3, le=15, description="copies of each partition")
    topic_min_insync_replicas: Count = Field(2, le=15, description="copies that must have an event before its 200")
    topic_retention_hours: Count = Field(168, description="of the ingress and the families")
    dead_letter_retention_hours: Count = Field(720, description="dead letters, to be looked at and mended")

    # -- Kafka: the writer --------------------------------------------------------------------------------------
    produce_deadline_s: Seconds = Field(10.0, description="an event not acknowledged by then is answered 503")
    produce_request_timeout_s: Seconds = Field(5.0, description="one request to a broker; below the deadline")
    # While Kafka is away the edge grows by a third more than this; the largest request needs 43 MiB of room.
    writer_buffered_bytes_max: Bytes = Field(44 * MiB, description="events waiting or in flight; above: 503")
    writer_batch_bytes_max: Bytes = Field(768 * KiB, le=1024 * KiB, description="one batch; below the topic's limit")

    # -- Kafka: the reader --------------------------------------------------------------------------------------
    reader_batch_records_max: Count = Field(2000, description="handed to a worker at a time")
    reader_buffered_bytes_max: Bytes = Field(
        64 * MiB, description="read ahead of the worker; a batch is a quarter of it"
    )
    reader_poll_interval_max_s: Seconds = Field(300.0, description="a worker silent for longer loses its partitions")
    reader_session_timeout_s: Seconds = Field(
        10.0, description="without heartbeat for longer, as one that is killed, a worker gives way to others"
    )

    # -- Postgres -----------------------------------------------------------------------------------------------
    postgres_dsn: SecretStr = Field(
        SecretStr("postgresql://drm@127.0.0.1:5432/drm"),
        description="libpq URI; TLS by its sslmode, sslrootcert, sslcert and sslkey parameters",
    )
    postgres_connections_max: Count = Field(8, le=500, description="a process")
    postgres_acquire_timeout_s: Seconds = Field(5.0, description="waiting for a free connection")
    postgres_statement_timeout_s: Seconds = Field(30.0, description="one statement")
    postgres_lock_timeout_s: Seconds = Field(5.0, description="waiting for a lock")

    # -- the network between ----------------------------------------------------------------------------------
    connection_silent_max_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        10.0, description="a connection to Kafka or Postgres whose other end acknowledges nothing for longer is closed"
    )

    # -- where each listens -------------------------------------------------------------------------------------
    edge_host: str = Field("127.0.0.1", description="where the edge listens; 0.0.0.0 for all addresses")
    edge_port: Port = Field(8080, description="events, health and metrics of the edge")
    edge_health_port: Port | None = Field(
        None, description="health and metrics of the edge alone; default: on its own port"
    )
    edge_cors_origins: str = Field("", description="browser origins that may post, separated by commas; * for any")
    edge_backlog_connections: Count = Field(4096, le=65_535, description="waiting to be accepted by the edge")
    serve_host: str = Field("127.0.0.1", description="where serve listens")
    serve_port: Port = Field(8081, description="registry, records, health and metrics of serve")
    serve_health_port: Port | None = Field(
        None, description="health and metrics of serve alone; default: on its own port"
    )
    worker_host: str = Field("127.0.0.1", description="health and metrics of enrich and attach")
    enrich_port: Port = Field(8082, description="health and metrics of enrich")
    attach_port: Port = Field(8083, description="health and metrics of attach")

    # -- the edge: limits ---------------------------------------------------------------------------------------
    request_header_bytes_max: Bytes = Field(16 * KiB, description="else 431")
    request_body_bytes_max: Bytes = Field(8 * MiB, description="as sent")
    request_decompressed_bytes_max: Bytes = Field(32 * MiB, description="a body once decompressed; else 413")
    request_compressed_members_max: Count = Field(10_000, description="gzip members or zstd frames of a body; else 400")
    request_events_max: Count = Field(10_000, description="else 413")
    event_bytes_max: Bytes = Field(256 * KiB, description="one event, as sent")
    event_depth_max: Count = Field(64, le=500, description="levels of JSON")
    request_header_timeout_s: Seconds = Field(10.0, description="headers not whole by then: 408")
    request_body_timeout_s: Seconds = Field(20.0, description="a body not whole by then: 408")
    connection_idle_timeout_s: Seconds = Field(60.0, description="without a request: closed")
    pipelined_requests_max: Count = Field(16, le=1000, description="of a connection, read before the first is answered")
    connections_max: Count = Field(10_000, description="a process")
    refused_body_discard_bytes_max: Bytes = Field(64 * MiB, description="read and dropped after an early refusal")
    refused_body_discard_timeout_s: Seconds = Field(5.0, description="and for no longer than that")
    request_in_flight_bytes_max: Bytes = Field(256 * MiB, description="bodies being read or checked; above: 503")
    quota_senders_max: Count = Field(4096, description="buckets of senders with quotas, 24 bytes each")
    quota_devices_max: Count = Field(65_536, description="the same of their devices; beyond, new ones find debts")
    websocket_window_messages: Count = Field(32, le=1024, description="messages that may be unacknowledged")
    websocket_message_bytes_max: Bytes = Field(512 * KiB, description="else closed with 1009")
    websocket_message_events_max: Count = Field(
        1000, description="else the message is refused; its answer is bounded so"
    )
    websocket_hello_bytes_max: Bytes = Field(8 * KiB, description="a message of who has not said who they are")
    websocket_message_frames_max: Count = Field(1024, description="fragments of one message; else closed with 1008")
    websocket_pings_per_s_max: Count = Field(10, description="pings and unasked pongs of a connection; else 1008")
    websocket_handshakes_per_s_max: Count = Field(300, description="WebSockets opened, a process; more: 503")
    websocket_unauthenticated_max: Count = Field(1000, description="WebSockets without a hello, a process; more: 503")
    websocket_ping_interval_s: Seconds = Field(20.0, description="how often the edge pings")
    websocket_ping_timeout_s: Seconds = Field(20.0, description="without a pong by then: closed")
    websocket_reconnect_spread_s: Seconds = Field(
        5.0, description="clients of an edge that stops are told to come back at some moment within it"
    )
    retry_after_s: Count = Field(1, description="what a 503 asks a sender to wait")
    drain_timeout_s: Seconds = Field(
        15.0, le=3600, description="after SIGTERM: finish what is in flight; 4 s later the process has ended"
    )

    # -- the edge: time and credentials -------------------------------------------------------------------------
    clock_skew_tolerated_s: Seconds = Field(300.0, description="a stated sending time off by more is corrected for")
    event_future_max_s: Annotated[float, Field(gt=0, le=1e9)] = Field(
        86_400.0, description="further ahead: clamped and marked"
    )
    credential_refresh_s: Annotated[float, Field(gt=0, le=4)] = Field(
        2.0, description="how often the credential snapshot is read anew, if no change was told before"
    )
    token_lifetime_max_s: Seconds = Field(3600.0, description="of a device's token, exp - iat; else 401")
    token_leeway_s: Annotated[float, Field(ge=0, le=600)] = Field(
        30.0, description="a token's iat, nbf and exp may be off by that"
    )
    token_audience: Annotated[str, Field(min_length=1)] = Field("drm-ingest", description="a token's aud; else 401")
    token_bytes_max: Bytes = Field(4 * KiB, description="a device's token; else 401")
    tokens_remembered_max: Count = Field(50_000, description="verified tokens kept in memory (400 bytes each)")
    authentication_failures_per_s_max: Count = Field(
        10, description="of one address, ten seconds' worth at once; then 429"
    )

    # -- the pipeline -------------------------------------------------------------------------------------------
    enrich_remembered_events_max: Count = Field(200_000, description="identities kept to suppress retries")
    enrich_user_agents_max: Count = Field(4096, description="user agents whose meaning is kept in memory")
    enrich_pace_s: Seconds = Field(0.01, description="batches begin no closer than this: larger ones cost less")
    enrich_commit_interval_s: Seconds = Field(0.2, description="what a crash repeats, at most")
    directory_devices_max: Count = Field(200_000, description="devices whose context is kept in memory (1 KB each)")
    directory_relations_max: Count = Field(100, description="of one device; of more, those that ended last are kept")
    directory_max_age_s: Seconds = Field(60.0, description="context older than that is read anew")
    directory_timeout_s: Seconds = Field(1.0, description="then events go on without context, and say so")
    attach_batch_records_max: Count = Field(4000, description="events in one transaction")
    attach_pace_s: Seconds = Field(0.05, description="from one transaction to the next while there is no backlog")
    attach_remembered_devices_max: Count = Field(200_000, description="devices remembered as registered")
    brake_share_max: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="of events that fail in a worker; above it stops and says why; 1: it never does"
    )
    brake_letters_min: Count = Field(50, description="fewer failures than that stop no worker")
    brake_window_events: Count = Field(1000, description="the share is taken of the batch in hand and so many before")
    brake_window_s: Seconds = Field(60.0, description="and of none older than that")
    brake_retry_max_s: Seconds = Field(15.0, description="a worker that stopped tries again that often, at least")
    identity_creates_parties: bool = Field(
        True, description="an identity event that names nobody known makes a customer of that reference; else it waits"
    )
    anonymous_claim_hours: Annotated[int, Field(ge=-1, le=1_000_000)] = Field(
        0, description="before the first sign-in ever on a device, claimed by that user; -1: all of it"
    )
    identity_sweep_s: Seconds = Field(10.0, description="how often identity events left undone are looked for")
    relay_poll_s: Seconds = Field(0.25, description="how often changes of relations are looked for, to be published")
    record_timeout_s: Seconds = Field(
        30.0, description="putting a record together; above, or above the time of one statement: 503"
    )
    live_record_devices_max: Count = Field(
        50,
        description="the record of a party with more devices is read from totals; fewer are put together when read",
    )
    live_timeline_relations_max: Count = Field(
        4000,
        description="of a party with totals and more relations a page is looked for among everybody's newest events",
    )
    totals_interval_s: Seconds = Field(
        1.0, description="how often totals are brought on; without any, a fifth as often"
    )
    totals_sweep_s: Seconds = Field(900.0, description="how often all parties are looked at for large ones")
    totals_recount_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = Field(
        86_400.0, description="how often totals are counted anew, which mends what a clock set back or retention left"
    )
    keeper_interval_s: Seconds = Field(3600.0, description="how often partitions of events are made and dropped")
    event_partitions_ahead_months: Count = Field(2, le=24, description="partitions of events made in advance")
    event_retention_days: Count = Field(730, description="older partitions of events are dropped")

    # -- serve --------------------------------------------------------------------------------------------------
    serve_body_bytes_max: Bytes = Field(1 * MiB, description="a request that makes or changes something")
    serve_page_bytes_max: Bytes = Field(8 * MiB, description="data of the events on a page, as stored; it ends there")
    serve_connections_max: Count = Field(1000, description="open at a time; above: 503")

    # -- serve: parties -----------------------------------------------------------------------------------------
    party_references_max: Count = Field(50, le=1000, description="of a party; else 422")
    party_attributes_max: Count = Field(200, le=1000, description="of a party, those of each origin counted; else 422")
    attribute_bytes_max: Bytes = Field(2 * KiB, le=64 * KiB, description="the value of an attribute, as JSON; else 422")
    origins_max: Count = Field(50, le=1000, description="in the declared order of trust; else 422")
    linked_parties_max: Count = Field(20, le=1000, description="that share one record; else 422")
    linked_relations_counted_max: Count = Field(
        1_000, le=100_000, description="of two parties together, up to which linking them counts the events it moves"
    )
    reference_hmac_key: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        None,
        description="serve and attach keep mail addresses and phone numbers as hashes keyed by it, else refuse them",
    )

    # -- serve: devices -----------------------------------------------------------------------------------------
    claim_code_hours: Count = Field(72, le=87_600, description="a claim code is good for, unless it says otherwise")
    claim_code_guesses_max: Count = Field(10, le=1000, description="wrong codes of a device; then its code is dead")
    devices_scanned_max: Count = Field(
        10_000, description="looked at for a page of unclaimed devices; it may hold fewer then, and has a next one"
    )

    # -- what people see ----------------------------------------------------------------------------------------
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_refusals_per_s_max: Count = Field(
        20, description="lines of a process of the edge about what it refused; more are counted and left out"
    )
    schemas_dir: Path | None = Field(None, description="default: the schemas shipped with the package")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.topic_min_insync_replicas > self.topic_replication_factor:
            raise ValueError("DRM_TOPIC_MIN_INSYNC_REPLICAS cannot exceed DRM_TOPIC_REPLICATION_FACTOR")
        if self.produce_request_timeout_s > self.produce_deadline_s:
            raise ValueError("DRM_PRODUCE_REQUEST_TIMEOUT_S cannot exceed DRM_PRODUCE_DEADLINE_S")
        if self.event_bytes_max > self.writer_batch_bytes_max:
            raise ValueError("DRM_EVENT_BYTES_MAX cannot exceed DRM_WRITER_BATCH_BYTES_MAX")
        if self.request_body_bytes_max > self.request_decompressed_bytes_max:
            raise ValueError("DRM_REQUEST_BODY_BYTES_MAX cannot exceed DRM_REQUEST_DECOMPRESSED_BYTES_MAX")
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError("SASL needs DRM_KAFKA_SASL_USERNAME and DRM_KAFKA_SASL_PASSWORD")
        return self


OF_TOOLS = frozenset({"DRM_DATA_DIR", "DRM_EDGE_URL", "DRM_SERVE_URL", "DRM_SENDER_KEY", "DRM_ADMIN_KEY"})
"""Variables that are no settings of a process, but of what speaks to one; `DRM_UP_…` are those of `up` itself."""


def unknown(environment: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each variable `DRM_…` that nothing of ours reads, with the one that may be meant."""
    known = {f"DRM_{name.upper()}" for name in Settings.model_fields} | OF_TOOLS
    for name in sorted(environment):
        if name.startswith("DRM_") and not name.startswith("DRM_UP_") and name.upper() not in known:
            nearest = get_close_matches(name, known, n=1)
            yield name, nearest[0] if nearest else None


def refused(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Yield each variable that is wrong, and a sentence with its name; "" where several contradict each other."""
    for problem in error.errors():
        name = "_".join(["DRM", *map(str, problem["loc"])]).upper() if problem["loc"] else ""
        why = problem["msg"].removeprefix("Value error, ")
        yield name, f"{name}: {why}" if name else why
