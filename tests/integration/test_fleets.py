"""Credentials from their registration to the edge: tokens of devices, scopes, rotation, expiry, revocation."""

import asyncio
import base64
import gzip
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from tests.integration.conftest import Ask
from tests.integration.edge import Edge, request
from tests.integration.test_credentials import following, make_key, until
from tests.tokens import Private, new_private_key, private_pem, public, token
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from drm_ingest.edge.credentials import Credentials
from drm_ingest.edge.identify import Identify
from drm_ingest.errors import Refusal
from drm_ingest.metrics import Metrics
from drm_ingest.serve.app import build
from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

OBEYED_WITHIN_S = 5.0


async def make_sender(admin: httpx.AsyncClient, **more: Any) -> str:
    answer = await admin.post("/v1/senders", json={"name": f"fleet-{uuid.uuid4().hex[:8]}"} | more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def register(admin: httpx.AsyncClient, sender: str, key: Private, **more: Any) -> dict[str, Any]:
    answer = await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": public(key).pem} | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


# -- the registry -----------------------------------------------------------------------------------------------------


async def test_a_fleets_key_is_registered_shown_and_revoked(admin: httpx.AsyncClient) -> None:
    sender, key = await make_sender(admin), new_private_key()
    made = await register(admin, sender, key, scope={"devices": ["meter-*"]})
    shown = {"kid": public(key).thumbprint, "algorithm": "EdDSA", "public_key": public(key).pem, "revoked_at": None}
    assert shown.items() <= made.items()
    assert made["scope"] == {"devices": ["meter-*"], "types": None, "identities": False}
    await register(admin, sender, new_private_key("ES256"), kid="2026-11")
    path = f"/v1/senders/{sender}/fleet-keys"
    listed = (await admin.get(path)).json()["items"]
    assert [item["kid"] for item in listed] == [public(key).thumbprint, "2026-11"]
    assert listed[0] == made

    for revoked in (1, 0):
        assert (await admin.delete(f"{path}/{made['id']}")).json() == {"revoked": revoked}
    assert (await admin.get(path)).json()["items"][0]["revoked_at"]
    again = await admin.post(path, json={"public_key": public(key).pem, "kid": "again"})
    assert (again.status_code, again.json()["fleet_key"]) == (409, made["id"])
    taken = await admin.post(path, json={"public_key": public(new_private_key()).pem, "kid": "2026-11"})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")


async def test_revoking_all_keys_of_a_sender_revokes_those_of_its_fleets(admin: httpx.AsyncClient) -> None:
    sender, other = await make_sender(admin), await make_sender(admin)
    await admin.post(f"/v1/senders/{sender}/keys")
    for owner in (sender, sender, other):
        await register(admin, owner, new_private_key())
    for revoked in (3, 0):
        assert (await admin.delete(f"/v1/senders/{sender}/keys")).json() == {"revoked": revoked}
    for owner, gone in ((sender, True), (other, False)):
        listed = (await admin.get(f"/v1/senders/{owner}/fleet-keys")).json()["items"]
        assert {item["revoked_at"] is not None for item in listed} == {gone}


async def test_a_fleets_key_that_would_have_ended_already_is_not_registered(admin: httpx.AsyncClient) -> None:
    sender = await make_sender(admin)
    sent = {"public_key": public(new_private_key()).pem, "expires_at": "2026-01-01T00:00:00Z"}
    answer = await admin.post(f"/v1/senders/{sender}/fleet-keys", json=sent)
    assert (answer.status_code, answer.json()["violations"][0]["pointer"]) == (422, "/expires_at")
    assert (await admin.get(f"/v1/senders/{sender}/fleet-keys")).json()["items"] == []


async def test_a_private_key_is_refused_and_not_repeated(admin: httpx.AsyncClient) -> None:
    sender = await make_sender(admin)
    for sent in (private_pem(new_private_key()).decode(), {"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "SECRETd"}):
        answer = await admin.post(f"/v1/senders/{sender}/fleet-keys", json={"public_key": sent})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
        assert "keep it" in answer.text
        assert "SECRETd" not in answer.text
        assert "PRIVATE KEY" not in answer.text


async def test_only_a_sender_that_is_not_one_device_has_a_fleet(admin: httpx.AsyncClient) -> None:
    for more in ({"role": "reader"}, {"device": "meter-7"}):
        sender = await make_sender(admin, **more)
        sent = {"public_key": public(new_private_key()).pem}
        assert (await admin.post(f"/v1/senders/{sender}/fleet-keys", json=sent)).status_code == 409
    nobody = f"/v1/senders/{uuid.uuid4()}/fleet-keys"
    assert (await admin.post(nobody, json={"public_key": public(new_private_key()).pem})).status_code == 404
    assert (await admin.get(nobody)).status_code == 404
    assert (await admin.delete(f"{nobody}/{uuid.uuid4()}")).status_code == 404


async def test_a_scope_is_given_with_a_key_and_shown(admin: httpx.AsyncClient) -> None:
    sender = await make_sender(admin)
    path = f"/v1/senders/{sender}/keys"
    everything = {"devices": None, "types": None, "parties": True, "identities": True}
    assert (await admin.post(path)).json()["scope"] == everything
    some = (await admin.post(path, json={"scope": {"devices": ["meter-*", "pump-1"]}})).json()
    assert some["scope"] == {"devices": ["meter-*", "pump-1"], "types": None, "parties": False, "identities": False}
    assert [item["scope"] for item in (await admin.get(path)).json()["items"]] == [everything, some["scope"]]
    wrong: dict[str, Any]
    for wrong in ({"devices": []}, {"devices": [""]}, {"device": ["x"]}, {"types": "device.*"}, {"parties": "maybe"}):
        assert (await admin.post(path, json={"scope": wrong})).status_code == 422, wrong


async def test_a_gateway_asks_for_the_fate_of_its_own_devices_only(admin: httpx.AsyncClient, ask: Ask) -> None:
    sender = await make_sender(admin)
    made = (await admin.post(f"/v1/senders/{sender}/keys", json={"scope": {"devices": ["meter-*"]}})).json()
    gateway = await ask(key=made["key"])
    assert (await gateway.get("/v1/events?subject=meter-7&id=1")).status_code == 200
    for subject in ("pump-1", "party:crm:778"):
        answer = await gateway.get(f"/v1/events?subject={subject}&id=1")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["missing_scopes"]


async def test_every_route_of_serve_needs_a_key_of_the_right_role(serve_app: FastAPI, ask: Ask) -> None:
    """Whatever is added: only GET /v1/events is open to a sender, only GETs but of senders and keys to a reader."""
    by_role = {"": await ask(key="")} | {role: await ask(role, role) for role in ("sender", "reader")}
    operations = [
        (method.upper(), path)
        for path, found in serve_app.openapi()["paths"].items()
        for method in found
        if not path.startswith("/health/") and path != "/metrics"
    ]
    assert len(operations) > 15
    for method, path in operations:
        filled = path.replace("{", "").replace("}", "")  # no such thing, but that is told only to those who may ask
        for role, client in by_role.items():
            answer = await client.request(method, filled, json={} if method in ("POST", "PUT", "PATCH") else None)
            kept = path.startswith(("/v1/senders", "/v1/keys"))
            allowed = (role == "reader" and method == "GET" and not kept) or (
                role == "sender" and (method, path) == ("GET", "/v1/events")
            )
            wanted = "not refused" if allowed else "unauthenticated" if not role else "forbidden"
            code = answer.json().get("code")
            assert (code if code in ("unauthenticated", "forbidden") else "not refused") == wanted, (method, path, role)


# -- at the edge ------------------------------------------------------------------------------------------------------

Admin = httpx.AsyncClient


@pytest.fixture
async def registry(edge: Edge) -> AsyncIterator[Admin]:
    """The registry of the database that the shared edge works on."""
    dsn = edge.settings.postgres_dsn.get_secret_value()
    key = await make_key(dsn, f"office-{uuid.uuid4().hex[:8]}", role="admin")
    app = build(edge.settings, Metrics("serve"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://serve", headers={"authorization": f"Bearer {key}"}
        ) as client,
    ):
        yield client


def an_event(subject: str | None = None, **more: Any) -> dict[str, Any]:
    about = {} if subject is None else {"subject": subject}
    return {"id": uuid.uuid4().hex, "type": "device.measurement", "data": {"temperature": 21.5}} | about | more


async def answers(
    edge: Edge, credential: str, status: int, event: dict[str, Any], within_s: float = 20
) -> httpx.Response:
    """Post until the answer has this status."""
    async with asyncio.timeout(within_s):
        while True:
            answer = await edge.post([event], key=credential)
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_a_device_with_a_token_writes_as_itself_and_as_nobody_else(
    edge: Edge, registry: Admin, algorithm: str
) -> None:
    sender, key = await make_sender(registry), new_private_key(algorithm)
    await register(registry, sender, key)
    own, other = f"meter-{uuid.uuid4().hex}", f"meter-{uuid.uuid4().hex}"
    credential = token(key, own)
    await answers(edge, credential, 200, an_event(own))
    assert (await edge.post([an_event()], key=credential)).json()["accepted"] == 1  # subject left out: itself
    for subject in (other, "party:crm:778"):
        answer = await edge.post([an_event(subject)], key=credential)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["missing_scopes"] == ["devices"]
        assert answer.json()["detail"].startswith(f"This token or key writes only as its own device, {own};")
    link = await edge.post([an_event(own, type="identity.linked", data={})], key=credential)
    assert (link.status_code, link.json()["missing_scopes"]) == (403, ["identities"])
    mixed = await edge.post([an_event(own), an_event(other)], key=credential)
    assert (mixed.status_code, mixed.json()["accepted"]) == (200, 1)
    assert [result["index"] for result in mixed.json()["results"] if result["code"] == "subject_forbidden"] == [1]
    assert await edge.stored(own, other) == [own] * 3


async def test_a_fleet_signs_for_its_own_devices_only(edge: Edge, registry: Admin) -> None:
    sender, key = await make_sender(registry), new_private_key()
    await register(registry, sender, key, scope={"devices": ["meter-*"], "types": ["device.*"], "identities": True})
    await answers(edge, token(key, "meter-7"), 200, an_event())
    foreign = await edge.post([an_event()], key=token(key, "pump-1"))
    assert (foreign.status_code, foreign.json()["missing_scopes"]) == (403, ["devices"])
    assert "does not list it" in foreign.json()["detail"]
    type_ = await edge.post([an_event(type="app.interaction", data={})], key=token(key, "meter-7"))
    assert (type_.status_code, type_.json()["missing_scopes"]) == (403, ["types"])


async def test_a_wrong_clock_is_told_at_the_edge(edge: Edge, registry: Admin) -> None:
    sender, key = await make_sender(registry), new_private_key()
    await register(registry, sender, key)
    await answers(edge, token(key, "meter-7"), 200, an_event())
    ahead = await edge.post([an_event()], key=token(key, "meter-7", age_s=-7200))
    slow = await edge.post(
        [an_event()],
        key=token(key, "meter-7", age_s=7200),
        date=time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 7200)),
    )
    for answer in (ahead, slow):
        assert (answer.status_code, answer.json()["code"]) == (401, "clock_skew")
        assert answer.json()["server_time"].endswith("Z")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    expired = await edge.post([an_event()], key=token(key, "meter-7", age_s=7200))
    assert (expired.status_code, expired.json()["code"]) == (401, "token_expired")


async def test_keys_of_a_fleet_rotate_with_both_in_force(edge: Edge, registry: Admin) -> None:
    sender, old, new = await make_sender(registry), new_private_key(), new_private_key()
    first = await register(registry, sender, old)
    await answers(edge, token(old, "meter-7"), 200, an_event())
    await register(registry, sender, new)
    await answers(edge, token(new, "meter-7"), 200, an_event())
    assert (await edge.post([an_event()], key=token(old, "meter-7"))).status_code == 200
    await registry.delete(f"/v1/senders/{sender}/fleet-keys/{first['id']}")
    await answers(edge, token(old, "meter-7"), 401, an_event(), OBEYED_WITHIN_S)
    assert (await edge.post([an_event()], key=token(new, "meter-7"))).status_code == 200


async def test_a_token_is_verified_once_and_remembered(edge: Edge, registry: Admin) -> None:
    sender, key = await make_sender(registry), new_private_key()
    await register(registry, sender, key)
    credential = token(key, "meter-7")
    await answers(edge, credential, 200, an_event())
    name = 'drm_token_verifications_total{result="valid"}'
    before = (await edge.metrics())[name]
    await make_key(edge.settings.postgres_dsn.get_secret_value(), f"other-{uuid.uuid4().hex[:8]}")  # a new snapshot
    await asyncio.sleep(3 * edge.settings.credential_refresh_s)
    for _ in range(5):
        assert (await edge.post([an_event()], key=credential)).status_code == 200
    for way in ("a", "b"):  # nor is it another one because it is written in another way
        basic = "Basic " + base64.b64encode(f"{credential}:{way}".encode()).decode()
        assert (await edge.post([an_event()], key=None, authorization=basic)).status_code == 200
    assert (await edge.metrics())[name] == before


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_body_that_is_whole_only_after_its_key_was_revoked_is_refused(
    edge: Edge, registry: Admin, compressed: bool
) -> None:
    sender, key, device, sentinel = await make_sender(registry), new_private_key(), uuid.uuid4().hex, uuid.uuid4().hex
    await register(registry, sender, key)
    credential = token(key, device)
    await answers(edge, credential, 422, {"type": "device.measurement"})  # known, and nothing is stored
    body = json.dumps([an_event()]).encode()
    late = request(gzip.compress(body), "Content-Encoding: gzip", key=credential)
    late = late if compressed else request(body, key=credential)
    async with edge.connect() as wire:
        await wire.send(late[:-10])
        assert (await registry.delete(f"/v1/senders/{sender}/keys")).json() == {"revoked": 1}
        await answers(edge, credential, 401, {"type": "device.measurement"}, OBEYED_WITHIN_S)
        await wire.send(late[-10:])
        reply = await wire.reply()
    assert (reply.status, reply.code) == (401, "unauthenticated")
    assert (await edge.post([an_event(sentinel)])).status_code == 200
    assert await edge.stored(device, sentinel) == [sentinel]


@pytest.mark.parametrize("by_hello", [False, True])
@pytest.mark.parametrize("ends", ["key revoked", "fleet key revoked", "token expired"])
async def test_a_silent_websocket_is_closed_when_its_credential_ends(
    edge: Edge, registry: Admin, ends: str, by_hello: bool
) -> None:
    sender, key = await make_sender(registry), new_private_key()
    fleet = await register(registry, sender, key)
    plain = (await registry.post(f"/v1/senders/{sender}/keys")).json()
    expiring = ends == "token expired"
    credential = plain["key"] if ends == "key revoked" else token(key, "meter-7")
    await answers(edge, credential, 200, an_event("meter-7"))
    if expiring:
        credential = token(key, "meter-7", age_s=30, lifetime_s=3)  # out of its leeway in three seconds
    headers = {} if by_hello else {"authorization": f"Bearer {credential}"}
    async with connect(edge.url.replace("http", "ws") + "/v1/events", additional_headers=headers) as socket:
        if by_hello:
            await socket.send(json.dumps({"hello": {"key": credential}}))
        assert "window" in json.loads(await socket.recv())
        if ends == "key revoked":
            await registry.delete(f"/v1/senders/{sender}/keys/{plain['id']}")
        elif ends == "fleet key revoked":
            await registry.delete(f"/v1/senders/{sender}/fleet-keys/{fleet['id']}")
        async with asyncio.timeout(OBEYED_WITHIN_S + 3):  # three until it expires
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert socket.close_code == 1008
        assert (socket.close_reason or "").startswith("token_expired: server_time" if expiring else "unauthenticated")


# -- while Postgres is down -------------------------------------------------------------------------------------------


def identifying(credentials: Credentials) -> Identify:
    return Identify(Settings(), credentials, Metrics("edge"))


def refusal(identify: Identify, credential: str) -> str:
    with pytest.raises(Refusal) as refused:
        identify.identify(f"Bearer {credential}".encode(), None, None)
    return refused.value.problem.code


async def test_a_revocation_is_told_at_once_and_stays_when_postgres_dies_right_after(
    private_postgres: Callable[[], Postgres],
) -> None:
    server = private_postgres()
    key, fleet = await make_key(server.dsn, "fleet"), new_private_key()
    kept = await make_key(server.dsn, "kept")
    connection = await asyncpg.connect(server.dsn)
    made = public(fleet)
    await connection.execute(
        "insert into fleet_key (sender, kid, thumbprint, algorithm, public_key) "
        "select id, $1, $1, $2, $3 from sender where name = 'fleet'",
        made.thumbprint, made.algorithm, made.pem,
    )  # fmt: skip
    # It reads anew each 4 s, so what is seen sooner was told.
    async with following(server.dsn, refresh_s=4) as credentials:
        identify = identifying(credentials)
        header, device = f"Bearer {key}".encode(), token(fleet, "meter-7")
        await until(lambda: credentials.find(header))
        assert identify.identify(f"Bearer {device}".encode(), None, None).device == "meter-7"
        await connection.execute("update sender_key set revoked_at = now() where sender in "
                                 "(select id from sender where name = 'fleet')")  # fmt: skip
        await connection.execute("update fleet_key set revoked_at = now()")
        revoked_at = time.monotonic()
        await until(lambda: credentials.find(header) is None and credentials.fleet_key(made.thumbprint) is None)
        assert time.monotonic() - revoked_at < 3
        await connection.close()
        await asyncio.to_thread(server.kill)
        assert credentials.find(f"Bearer {device}".encode()) is None
        assert refusal(identify, key) == refusal(identify, device) == "unauthenticated"
        assert identify.identify(f"Bearer {kept}".encode(), None, None).sender == "kept"


async def test_cut_off_for_long_the_edge_does_not_say_401_to_somebody_it_may_not_have_heard_of(
    private_postgres: Callable[[], Postgres],
) -> None:
    server = private_postgres()
    key, revoked = await make_key(server.dsn, "fleet"), await make_key(server.dsn, "gone")
    async with following(server.dsn) as credentials:
        identify = identifying(credentials)
        await until(lambda: credentials.find(f"Bearer {revoked}".encode()))
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("delete from sender where name = 'gone'")
        await connection.close()
        await until(lambda: credentials.find(f"Bearer {revoked}".encode()) is None)
        unknown = token(new_private_key(), "meter-7")
        assert refusal(identify, "drm_unknown") == refusal(identify, unknown) == "unauthenticated"
        await asyncio.to_thread(server.stop)
        await until(lambda: credentials.stale)
        assert refusal(identify, "drm_unknown") == refusal(identify, unknown) == "not_ready"
        assert refusal(identify, revoked) == "unauthenticated"
        assert identify.identify(f"Bearer {key}".encode(), None, None).sender == "fleet"
        await asyncio.to_thread(server.start)
        await until(lambda: not credentials.stale)
        assert refusal(identify, "drm_unknown") == "unauthenticated"
