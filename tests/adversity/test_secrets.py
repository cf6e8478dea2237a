"""Secrets never leave: one of each kind is planted in the real processes, and everything they write is searched."""

import asyncio
import base64
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr
from tests.adversity.parts import Parts
from tests.conftest import make_environment, make_settings
from tests.integration.brokers import SecuredBroker
from tests.integration.edge import until
from tests.integration.test_credentials import make_key
from tests.tokens import new_private_key, private_pem, public, token
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from drm_ingest.settings import Settings

PROCESSES = ("edge", "enrich", "attach", "serve")
DEVICE = "meter-7"


class Broker(SecuredBroker):
    PASSWORD = f"canary-sasl-{uuid.uuid4().hex}"


@pytest.mark.row("forged")
async def test_no_secret_is_written_anywhere(
    private_postgres: Callable[[], Any], tmp_path: Path, seen: Callable[[str], None]
) -> None:
    broker = Broker(tmp_path / "secured")
    postgres, _ = await asyncio.gather(asyncio.to_thread(private_postgres), asyncio.to_thread(broker.start))
    settings = make_settings(broker, postgres.dsn).model_copy(
        update={
            "kafka_bootstrap": broker.secured,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_username": broker.USER,
            "kafka_sasl_password": SecretStr(broker.PASSWORD),
            "kafka_ssl_ca_file": broker.ca_file,
            "postgres_dsn": SecretStr(postgres.dsn),
            "authentication_failures_per_s_max": 1_000_000,  # so that each is looked at
        }
    )
    fleet = new_private_key()
    secrets = {
        "the password of Postgres": urlsplit(postgres.dsn).password or "",
        "the password of Kafka": broker.PASSWORD,
        "an administrator's key": await make_key(postgres.dsn, "office", role="admin"),
        "a token": token(fleet, DEVICE),
        "an expired token": token(fleet, DEVICE, age_s=7200),
        "a forged token": token(new_private_key(), DEVICE, kid=public(fleet).thumbprint),
        "an unknown key": f"drm_{uuid.uuid4().hex}{uuid.uuid4().hex}",
        "a private key": private_pem(new_private_key()).decode().split("\n")[1],
    }
    assert all(len(secret) > 20 for secret in secrets.values())
    parts = Parts(settings, tmp_path, PROCESSES)
    try:
        await asyncio.to_thread(parts.start)
        answers = await register(parts, secrets, public(fleet).pem)
        answers += await offer(parts, secrets)
        await asyncio.to_thread(postgres.kill)  # so that there is something to complain of
        commands = asyncio.gather(*(asyncio.to_thread(said, settings, *each) for each in COMMANDS))
        answers += await offer(parts, secrets) + await commands
        await until(lambda: complained(parts))
        await asyncio.to_thread(postgres.start)
        await parts.ready("attach")
        answers += await offer(parts, secrets)
        await until(lambda: stored(postgres.dsn), within_s=60)
        async with httpx.AsyncClient(timeout=30) as client:
            metrics = [(await client.get(parts.url(process) + "/metrics")).content for process in PROCESSES]
        places = {
            "answers and what commands say": b"\n".join(answers),
            "metrics": b"\n".join(metrics),
            "Kafka": await everything_in_kafka(settings, broker.bootstrap),
            "Postgres": await everything_in_postgres(postgres.dsn),
            **logs_in(tmp_path),
        }
    finally:
        parts.end()
        await asyncio.to_thread(broker.kill)
    # That each place was really looked into.
    assert {f"{process}.log" for process in PROCESSES} <= places.keys()
    assert any("postgres" in name for name in places)
    assert all(DEVICE.encode() in places[name] for name in ("Kafka", "Postgres"))
    assert b'drm_refusals_total{code="unauthenticated"}' in places["metrics"]
    leaks = {
        (what, name)
        for what, secret in secrets.items()
        for form in forms(secret)
        for name, content in places.items()
        if form in content
    }
    assert not leaks
    searched_kb = sum(map(len, places.values())) // 1024
    seen(f"{len(secrets)} secrets planted, none found in {searched_kb} KB of {len(places)} places")


def forms(secret: str) -> Iterable[bytes]:
    """Return how it may look: as it is, as a user name of Basic, in a URL, cut short."""
    yield secret.encode()
    yield base64.b64encode(f"{secret}:".encode())[:-4]
    yield quote(secret, safe="").encode()
    yield secret[:24].encode()


# -- where secrets may go, and where people put them by mistake


async def register(parts: Parts, secrets: dict[str, str], fleet: str) -> list[bytes]:
    """Make a sender with a key and a fleet's key; return the answers to what must not be sent like that."""
    office = {"authorization": "Bearer " + secrets["an administrator's key"]}
    async with httpx.AsyncClient(base_url=parts.url("serve"), headers=office, timeout=30) as admin:
        sender = (await admin.post("/v1/senders", json={"name": "fleet"})).json()["id"]
        made = await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": fleet})
        assert made.status_code == 201, made.text
        secrets["a key just made"] = (await admin.post(f"/v1/senders/{sender}/keys")).json()["key"]
        pem = f"-----BEGIN PRIVATE KEY-----\n{secrets['a private key']}\n-----END PRIVATE KEY-----"
        by_mistake = [
            await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": pem}),
            await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": {"d": secrets["a private key"]}}),
            await admin.post("/v1/senders", json={"name": "x", "key": secrets["a key just made"]}),
            await admin.post(f"/v1/senders/{sender}/keys", json={"scope": {"key": secrets["a key just made"]}}),
            await admin.post("/v1/senders", json=secrets["a key just made"]),
            await admin.get("/v1/senders", params={"key": secrets["a key just made"]}),
        ]
    assert {answer.status_code for answer in by_mistake[:-1]} <= {400, 422}, by_mistake
    return [answer.content for answer in by_mistake]


async def offer(parts: Parts, secrets: dict[str, str]) -> list[bytes]:
    """Send each as a credential, in every place where it can be put; return all answers."""
    edge, serve = parts.url("edge"), parts.url("serve")
    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=16)) as client:

        async def ask(credential: str, authorization: str) -> list[bytes]:
            headers = {"authorization": authorization}
            event = {"id": uuid.uuid4().hex, "type": "device.measurement", "subject": DEVICE}
            answers = [
                await client.post(f"{edge}/v1/events", json=[{**event, "data": {"temperature": 1}}], headers=headers),
                await client.post(f"{edge}/v1/events", json=["nonsense"], headers=headers),
                await client.post(f"{edge}/v1/events", params={"access_token": credential}, headers=headers),
                await client.get(f"{serve}/v1/senders", headers=headers),
                await client.get(f"{serve}/v1/nothing", params={"key": credential}, headers=headers),
            ]
            return [answer.content for answer in answers]

        asked = [
            ask(credential, authorization)
            for credential in secrets.values()
            for authorization in (f"Bearer {credential}", basic(credential), f"Token {credential}")
        ]
        sockets = [over_websocket(edge, credential) for credential in secrets.values()]
        return [answer for answers in await asyncio.gather(*asked, *sockets) for answer in answers]


def basic(credential: str) -> str:
    return "Basic " + base64.b64encode(f"{credential}:".encode()).decode()


async def over_websocket(edge: str, credential: str) -> list[bytes]:
    answers: list[bytes] = []
    try:
        url = edge.replace("http", "ws") + f"/v1/events?key={quote(credential, safe='')}"
        async with connect(url) as socket, asyncio.timeout(30):
            await socket.send(json.dumps({"hello": {"key": credential}}))
            await socket.send('{"seq": 1, "events": [7]}')
            while "ack" not in (told := json.loads(await socket.recv())):
                answers.append(json.dumps(told).encode())
            answers.append(json.dumps(told).encode())
    except ConnectionClosed as closed:
        answers.append(str(closed).encode())
    except InvalidStatus as refused:
        answers.append(bytes(refused.response.body or b""))
    return answers


COMMANDS: list[tuple[tuple[str, ...], dict[str, str]]] = [
    (("doctor",), {}),
    (("migrate",), {}),
    (("edge",), {"DRM_POSTGRES_DSN": "{dsn} and more", "DRM_KAFKA_SASL_PASSWORD": "{password}\n"}),
    (("edge",), {"DRM_KAFKA_SASL_USERNAME": "nobody"}),
    (("edge",), {"DRM_KAFKA_PASSWORD": "{password}", "DRM_EDGE_PORT": "{password}"}),
]
"""With Postgres away, or set up wrongly."""


def said(settings: Settings, command: tuple[str, ...], changed: dict[str, str]) -> bytes:
    """Return what a command says, to people and logs."""
    own = make_environment(settings)
    dsn, password = own["DRM_POSTGRES_DSN"], own["DRM_KAFKA_SASL_PASSWORD"]
    environment = own | {name: value.format(dsn=dsn, password=password) for name, value in changed.items()}
    done = subprocess.run(
        [sys.executable, "-m", "drm_ingest", *command], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0, (command, done.stdout)
    return done.stdout + done.stderr


# -- where everything is that is written


async def complained(parts: Parts) -> bool:
    """Whether these have noticed that Postgres is gone."""
    return all(
        any(
            json.loads(line)["level"] in ("warning", "error")
            for line in parts[process].log_file.read_text().splitlines()
        )
        for process in ("edge", "attach", "serve")
    )


async def stored(dsn: str) -> bool:
    db = await asyncpg.connect(dsn)
    try:
        return bool(await db.fetchval("select exists (select from event where subject = $1)", DEVICE))
    finally:
        await db.close()


async def everything_in_kafka(settings: Settings, plain: str) -> bytes:
    """Return every record of every topic: keys, values and headers."""
    consumer = AIOKafkaConsumer(bootstrap_servers=plain, auto_offset_reset="earliest")
    await consumer.start()
    found = []
    try:
        topics = [topic for topic in await consumer.topics() if topic.startswith(settings.topic_prefix)]
        admin = AIOKafkaAdminClient(bootstrap_servers=plain)
        await admin.start()
        described = await admin.describe_topics(topics)
        await admin.close()
        parts = [TopicPartition(one["topic"], part["partition"]) for one in described for part in one["partitions"]]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        await consumer.seek_to_beginning(*parts)
        for part in parts:
            while await consumer.position(part) < ends[part]:
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    found += [repr((record.key, record.value, record.headers)).encode() for record in batch]
    finally:
        await consumer.stop()
    return b"\n".join(found)


async def everything_in_postgres(dsn: str) -> bytes:
    """Return every row of every table, as text."""
    db = await asyncpg.connect(dsn)
    try:
        tables = await db.fetch("select tablename from pg_tables where schemaname = 'public'")
        rows = [await db.fetch(f'select t::text from "{table["tablename"]}" t') for table in tables]
    finally:
        await db.close()
    return b"\n".join(row[0].encode() for table in rows for row in table)


def logs_in(folder: Path) -> dict[str, bytes]:
    """Return what our processes and Postgres logged, by the path of the file."""
    files = [*folder.glob("*.log"), *folder.glob("postgres-*/**/*.log")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
