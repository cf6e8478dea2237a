"""Whoever cannot prove who they are: forged and stolen tokens, and the guessing of keys."""

import asyncio
import hashlib
import hmac
import json
import secrets
import statistics
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import jwt
import pytest
from pydantic import SecretStr
from tests.adversity.running import Running
from tests.integration.edge import NO_TLS, Edge
from tests.integration.edge_fixtures import start_edge
from tests.integration.test_credentials import following, make_key, until
from tests.tokens import Private, claims, new_private_key, public, raw_token, segment, token
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from drm_ingest.edge.identify import Identify
from drm_ingest.errors import Refusal
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

__all__ = ["start_edge"]  # a fixture

pytestmark = pytest.mark.row("forged")
STORED_WITHIN_S = 30
OBEYED_WITHIN_S = 5.0


@dataclass
class Fleet:
    """A fleet registered at a running path."""

    path: Running
    sender: str
    key: Private
    admin: httpx.AsyncClient

    @property
    def kid(self) -> str:
        return public(self.key).thumbprint

    async def post(self, credential: str, subject: str | None, *, source_ip: str = "127.0.0.1") -> httpx.Response:
        event = {"id": uuid.uuid4().hex, "type": "device.measurement", "data": {"temperature": 21.5}}
        if subject is not None:
            event["subject"] = subject
        transport = httpx.AsyncHTTPTransport(local_address=source_ip, verify=NO_TLS)
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            return await client.post(
                self.path.where["edge_url"] + "/v1/events",
                json=[event],
                headers={b"authorization": f"Bearer {credential}".encode("latin-1")},
            )


@pytest.fixture
async def fleet(path: Running) -> AsyncIterator[Fleet]:
    where, key = path.where, new_private_key()
    headers = {"authorization": f"Bearer {where['admin_key']}"}
    async with httpx.AsyncClient(base_url=where["serve_url"], headers=headers, timeout=30) as admin:
        sender = (await admin.post("/v1/senders", json={"name": f"fleet-{uuid.uuid4().hex[:8]}"})).json()["id"]
        made = await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": public(key).pem})
        assert made.status_code == 201, made.text
        fleet = Fleet(path, sender, key, admin)
        async with asyncio.timeout(OBEYED_WITHIN_S):
            while (await fleet.post(token(key, "meter-0"), None)).status_code != 200:
                pass
        yield fleet


def forgeries(key: Private, device: str) -> dict[str, tuple[str, str]]:
    """Return tokens that claim to be for that device: the code of the answer, and the token."""
    kid, pem = public(key).thumbprint, public(key).pem
    header, said, signature = token(key, "meter-0").split(".")
    unsigned = f"{segment({'alg': 'HS256', 'kid': kid})}.{segment(claims(device))}"
    by_hmac = hmac.new(pem.encode(), unsigned.encode(), hashlib.sha256).digest()
    wrong = {
        "alg none": raw_token({"alg": "none", "kid": kid}, claims(device), b""),
        "alg none with a signature": raw_token({"alg": "none", "kid": kid}, claims(device), b"x" * 64),
        "HS256 with the public key": f"{unsigned}.{jwt.utils.base64url_encode(by_hmac).decode()}",
        "another key": token(new_private_key(), device, kid=kid),
        "an unknown kid": token(key, device, kid="unknown"),
        "another kind of key": token(new_private_key("ES256"), device, kid=kid),
        "another payload": f"{header}.{segment(claims(device))}.{signature}",
        "another header": f"{segment({'alg': 'EdDSA', 'kid': kid, 'x': 1})}.{said}.{signature}",
        "no signature": f"{header}.{said}.",
        "for somebody else": token(key, device, aud="another-service"),
        "without aud": token(key, device, aud=None),
        "for a year": token(key, device, lifetime_s=365 * 86_400),
        "for a party": token(key, "party:crm:778"),
        "without sub": token(key, device, sub=None),
        "huge": token(key, device, more="x" * 5000),
        "kid with SQL in it": token(key, device, kid="'; drop table sender; --"),
    }
    return {
        **{kind: ("unauthenticated", forged) for kind, forged in wrong.items()},
        "expired": ("token_expired", token(key, device, age_s=3600)),
        "not valid yet": ("clock_skew", token(key, device, age_s=-3600)),
    }


async def test_no_forged_token_gets_in_by_http_or_by_websocket(fleet: Fleet, seen: Callable[[str], None]) -> None:
    device = f"forged-{uuid.uuid4().hex}"
    kinds = forgeries(fleet.key, device)
    url = fleet.path.where["edge_url"].replace("http", "ws") + "/v1/events"
    for number, (kind, (code, forged)) in enumerate(kinds.items()):
        answer = await fleet.post(forged, device, source_ip=f"127.0.1.{number + 1}")
        assert (answer.status_code, answer.json()["code"]) == (401, code), kind
        assert forged not in answer.text
        async with connect(url) as socket:
            await socket.send(json.dumps({"hello": {"key": forged}}))
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert (socket.close_code, (socket.close_reason or "").split(":")[0]) == (1008, code), kind
    other = await fleet.post(token(fleet.key, "meter-0"), device)
    assert (other.status_code, other.json()["missing_scopes"]) == (403, ["devices"])
    too_large = await fleet.post("x" * 30_000, device)
    assert too_large.status_code == 431

    sentinel = f"sentinel-{uuid.uuid4().hex}"
    assert (await fleet.post(token(fleet.key, sentinel), None)).status_code == 200
    db = await asyncpg.connect(fleet.path.where["postgres_dsn"])
    try:
        async with asyncio.timeout(STORED_WITHIN_S):
            while not await db.fetchval("select exists (select from event where subject = $1)", sentinel):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await db.fetchval("select exists (select from event where subject = $1)", device)
    finally:
        await db.close()
    seen(f"{len(kinds)} kinds of forged tokens refused by HTTP and WebSocket")


async def test_guessing_is_slowed_and_hurts_nobody_else(fleet: Fleet, seen: Callable[[str], None]) -> None:
    """Keys and tokens of a fleet that exists are guessed from one address; others, there and elsewhere, go on."""
    guesser, known = "127.0.2.1", fleet.path.where["sender_key"]
    result = 'drm_token_verifications_total{result="refused"}'
    before = (await fleet.path.samples())["edge"][result]
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    for number in range(200):
        guess = f"drm_{secrets.token_urlsafe(32)}" if number % 2 else token(new_private_key(), "m", kid=fleet.kid)
        answer = await fleet.post(guess, None, source_ip=guesser)
        statuses[answer.status_code] += 1
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["limit"] == Settings().authentication_failures_per_s_max
    took_s = time.monotonic() - began
    allowed = Settings().authentication_failures_per_s_max * (10 + took_s)
    verified = (await fleet.path.samples())["edge"][result] - before
    assert set(statuses) <= {401, 429}
    assert statuses[401] <= allowed + 1
    assert verified <= allowed + 1
    if took_s < 5:  # else there was time for all of them
        assert statuses[429]
    for source_ip in (guesser, "127.0.2.2"):
        assert (await fleet.post(known, "meter-0", source_ip=source_ip)).status_code == 200
    assert (await fleet.post(token(fleet.key, "meter-1"), None, source_ip="127.0.2.2")).status_code == 200
    seen(f"200 guesses in {took_s:.1f} s: {statuses[401]} looked at, {statuses[429]} not; a known key went on")


async def test_a_revocation_is_obeyed_by_every_worker_though_postgres_dies(
    private_postgres: Callable[[], Any], start_edge: Callable[..., Edge], seen: Callable[[str], None]
) -> None:
    server = await asyncio.to_thread(private_postgres)
    edge = await asyncio.to_thread(
        start_edge, 2, postgres_dsn=SecretStr(server.dsn), credential_refresh_s=2.0,
        authentication_failures_per_s_max=1_000_000,  # we ask often, and 429 would not tell
    )  # fmt: skip
    stolen, kept = await make_key(server.dsn, "stolen"), await make_key(server.dsn, "kept")

    async def statuses(key: str) -> set[int]:
        """Over connections of their own, so that each worker is asked."""
        return {answer.status_code for answer in await asyncio.gather(*(edge.post([], key=key) for _ in range(12)))}

    async with asyncio.timeout(30):
        while await statuses(stolen) != {200} or await statuses(kept) != {200}:
            pass
    db = await asyncpg.connect(server.dsn)
    await db.execute("update sender_key set revoked_at = now() from sender s where s.id = sender and s.name = 'stolen'")
    await db.close()
    revoked_at = time.monotonic()
    while await statuses(stolen) != {401}:
        assert time.monotonic() - revoked_at < OBEYED_WITHIN_S
    took_s = time.monotonic() - revoked_at
    assert took_s < OBEYED_WITHIN_S
    await asyncio.to_thread(server.kill)
    assert (await statuses(stolen), await statuses(kept)) == ({401}, {200})
    seen(f"two workers obeyed a revocation within {took_s:.2f} s, and after Postgres died")


async def test_an_answer_takes_as_long_for_the_known_as_for_the_unknown(
    database: str, seen: Callable[[str], None]
) -> None:
    """A key all but right against a random one; a token under a kid that exists against one that does not."""
    key, fleet = await make_key(database, "fleet"), new_private_key()
    made = public(fleet)
    db = await asyncpg.connect(database)
    await db.execute(
        "insert into fleet_key (sender, kid, thumbprint, algorithm, public_key) select id, $1, $1, $2, $3 from sender",
        made.thumbprint, made.algorithm, made.pem,
    )  # fmt: skip
    await db.close()
    settings = Settings(authentication_failures_per_s_max=1_000_000)
    async with following(database, refresh_s=4) as credentials:  # the loop is held up below, and what is read grows old
        await until(lambda: credentials.fleet_key(made.thumbprint))
        identify = Identify(settings, credentials, Metrics("edge"))

        def seconds(credential: str) -> float:
            header = f"Bearer {credential}".encode()
            began = time.perf_counter()
            with pytest.raises(Refusal):
                identify.identify(header, None, "127.0.0.1")
            return time.perf_counter() - began

        def ratio(known: Callable[[], str], unknown: Callable[[], str], samples: int) -> float:
            pairs = [(seconds(known()), seconds(unknown())) for _ in range(samples)]
            return statistics.median(one for one, _ in pairs) / statistics.median(other for _, other in pairs)

        stranger = new_private_key()
        nearly = ratio(lambda: key[:-2] + secrets.token_urlsafe(2)[:2].replace(key[-2:], "--"),
                       lambda: "drm_" + secrets.token_urlsafe(32), 2000)  # fmt: skip
        kids = ratio(lambda: token(stranger, secrets.token_hex(4), kid=made.thumbprint),
                     lambda: token(stranger, secrets.token_hex(4), kid=secrets.token_urlsafe(32)), 400)  # fmt: skip
    assert 0.7 < nearly < 1.4
    assert 0.7 < kids < 1.4
    seen(f"time for a nearly right key / a random one {nearly:.2f}, for a known kid / an unknown one {kids:.2f}")
