"""Secrets never leave: one of each kind is planted in the real processes, and everything they write is searched."""

import asyncio
import base64
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr
from tests.adversity.parts import Parts
from tests.conftest import make_settings
from tests.integration.brokers import SecuredBroker
from tests.integration.test_credentials import make_key
from tests.tokens import new_private_key, private_pem, public, token
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from drm_ingest.settings import Settings

PROCESSES = ("edge", "enrich", "attach", "serve")


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


class Broker(SecuredBroker):
    PASSWORD = f"canary-sasl-{uuid.uuid4().hex}"


@pytest.mark.row("forged")
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_secret_is_written_anywhere(
    private_postgres: Callable[[], Any], tmp_path: Path, seen: Callable[[str], None]
) -> None:
    postgres = await asyncio.to_thread(private_postgres)
    broker = Broker(tmp_path / "secured")
    await asyncio.to_thread(broker.start)
    dsn = postgres.dsn
    password = urlsplit(dsn).password
    assert password
    settings = make_settings(broker, dsn).model_copy(
        update={
            "kafka_bootstrap": broker.secured,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_username": broker.USER,
            "kafka_sasl_password": SecretStr(broker.PASSWORD),
            "kafka_ssl_ca_file": broker.ca_file,
            "postgres_dsn": SecretStr(dsn),
        }
    )
    parts = Parts(settings, tmp_path, PROCESSES)
    try:
        await asyncio.to_thread(parts.start)
        office = await make_key(postgres.dsn, "office", role="admin")
        private, expired = new_private_key(), new_private_key()
        secrets = {
            "the password of Postgres": password,
            "the password of Kafka": broker.PASSWORD,
            "an administrator's key": office,
            "a token": token(private, "meter-7"),
            "an expired token": token(private, "meter-7", age_s=7200),
            "a forged token": token(expired, "meter-7"),
            "an unknown key": f"drm_{uuid.uuid4().hex}{uuid.uuid4().hex}",
            "a private key": private_pem(new_private_key()).decode().split("\n")[1],
        }
        problems = await _plant(parts, secrets, private)
        await asyncio.to_thread(postgres.kill)  # so that there is something to complain of
        await _post_and_ask(parts, secrets)
        await asyncio.sleep(2)
        await asyncio.to_thread(postgres.start)
        problems += await _post_and_ask(parts, secrets)
        metrics = []
        async with httpx.AsyncClient(timeout=30) as client:
            metrics = [(await client.get(parts.url(process) + "/metrics")).content for process in PROCESSES]
        places = {
            "problems and answers": b"\n".join(problems),
            "metrics": b"\n".join(metrics),
            "Kafka": await everything_in_kafka(settings, broker.bootstrap),
            "Postgres": await everything_in_postgres(postgres.dsn),
            **logs_in(tmp_path),
        }
    finally:
        for process in PROCESSES:
            parts[process].kill()
        await asyncio.to_thread(broker.kill)
    assert {"edge.log", "serve.log", "enrich.log", "attach.log"} <= places.keys()
    assert any("postgres" in name for name in places)
    assert b"meter-7" in places["Kafka"]
    assert b"meter-7" in places["Postgres"]
    leaks = {
        (what, place)
        for what, secret in secrets.items()
        for form in (secret, base64.b64encode(f"{secret}:".encode()).decode()[:-4], secret[:24])
        for place, content in places.items()
        if form.encode() in content
    }
    assert not leaks
    searched_kb = sum(map(len, places.values())) // 1024
    seen(f"{len(secrets)} secrets planted, none found in {searched_kb} KB of {len(places)} places")


async def _plant(parts: Parts, secrets: dict[str, str], private: Any) -> list[bytes]:
    """Put each secret where secrets may go, and where people put them by mistake."""
    office = {"authorization": "Bearer " + secrets["an administrator's key"]}
    async with httpx.AsyncClient(base_url=parts.url("serve"), headers=office, timeout=30) as admin:
        sender = (await admin.post("/v1/senders", json={"name": "fleet"})).json()["id"]
        made = await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": public(private).pem})
        assert made.status_code == 201, made.text
        new = (await admin.post(f"/v1/senders/{sender}/keys")).json()
        secrets["a key just made"] = new["key"]
        pem = f"-----BEGIN PRIVATE KEY-----\n{secrets['a private key']}\n-----END PRIVATE KEY-----"
        by_mistake = [
            await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": pem}),
            await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": {"d": secrets["a private key"]}}),
            await admin.post("/v1/senders", json={"name": "x", "key": secrets["a key just made"]}),
            await admin.get("/v1/senders", params={"key": secrets["a key just made"]}),
        ]
    return [answer.content for answer in by_mistake] + await _post_and_ask(parts, secrets)


async def _post_and_ask(parts: Parts, secrets: dict[str, str]) -> list[bytes]:
    answers = []
    async with httpx.AsyncClient(timeout=30) as client:
        for credential in secrets.values():
            basic = base64.b64encode(f"{credential}:".encode()).decode()
            for authorization in (f"Bearer {credential}", f"Basic {basic}", f"Token {credential}"):
                headers = {"authorization": authorization}
                event = [
                    {
                        "id": uuid.uuid4().hex,
                        "type": "device.measurement",
                        "subject": "meter-7",
                        "data": {"temperature": 1},
                    }
                ]
                answers += [
                    await client.post(parts.url("edge") + "/v1/events", json=event, headers=headers),
                    await client.post(parts.url("edge") + "/v1/events", json=["nonsense"], headers=headers),
                    await client.post(parts.url("edge") + f"/v1/events?access_token={credential}", headers=headers),
                    await client.get(parts.url("serve") + "/v1/senders", headers=headers),
                    await client.get(parts.url("serve") + f"/v1/nothing?key={credential}", headers=headers),
                ]
            try:
                async with connect(parts.url("edge").replace("http", "ws") + f"/v1/events?key={credential}") as socket:
                    await socket.send(json.dumps({"hello": {"key": credential}}))
                    await socket.send('{"seq": 1, "events": [7]}')
                    async with asyncio.timeout(5):
                        answers += [httpx.Response(200, content=str(await socket.recv()).encode()) for _ in range(2)]
            except (ConnectionClosed, InvalidStatus, TimeoutError):
                pass
    return [answer.content for answer in answers]
