"""Relations in two times, from outside: begun, ended, corrected, withdrawn; what excludes what; what we knew when."""

import asyncio
import itertools
import re
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from tests.integration.conftest import Ask, Attach, Sent
from tests.integration.test_registry import APRIL, MARCH, MAY, make_party, refused

JUNE = "2026-06-01T00:00:00Z"
RELATIONSHIPS = "/v1/relationships"
KINDS = ("customer", "vendor", "partner", "employee", "supplier")


async def begun(admin: httpx.AsyncClient, party: str, subject: str = "meter-7", **relation: Any) -> dict[str, Any]:
    body = {"subject": subject, "role": "owner", "party": party, "valid_from": MARCH} | relation
    while (answer := await admin.post(RELATIONSHIPS, json=body)).status_code == 503:
        pass  # as below
    assert answer.status_code == 201, answer.text
    relation_: dict[str, Any] = answer.json()
    return relation_


async def change(admin: httpx.AsyncClient, relation: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
    headers = {"if-match": body.pop("if_match")} if "if_match" in body else {}
    return await admin.post(f"{RELATIONSHIPS}/{relation['id']}/{verb}", json=body, headers=headers)


async def insisting(admin: httpx.AsyncClient, relation: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
    """Ask again while the answer is 503: on a slow machine one waits for another longer than serve lets it."""
    while (answer := await change(admin, relation, verb, **body)).status_code == 503:
        pass
    return answer


async def changed(admin: httpx.AsyncClient, relation: dict[str, Any], verb: str, **body: Any) -> dict[str, Any]:
    answer = await change(admin, relation, verb, **body)
    assert answer.status_code == 200, answer.text
    row: dict[str, Any] = answer.json()
    return row


async def listed(admin: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    answer = await admin.get(RELATIONSHIPS, params=filters)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def history(admin: httpx.AsyncClient, relation: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await admin.get(f"{RELATIONSHIPS}/{relation['id']}/versions")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def held(row: dict[str, Any]) -> tuple[str | None, str | None]:
    return row["valid_from"], row["valid_to"]


# -- the doors --------------------------------------------------------------------------------------------------------


async def test_a_relation_keeps_its_id_while_it_is_corrected_ended_and_withdrawn(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    first = await begun(admin, ada, reason="sale")
    corrected = await changed(admin, first, "correct", valid_from=APRIL, reason="invoice", asserted_by="erp")
    ended = await changed(admin, first, "end", at=MAY, reason="sold on")
    assert [row["id"] for row in (corrected, ended)] == [first["id"]] * 2
    assert [(row["version"], *held(row)) for row in (first, corrected, ended)] == [
        (1, MARCH, None), (2, APRIL, None), (3, APRIL, MAY),
    ]  # fmt: skip
    assert (corrected["asserted_by"], corrected["reason"]) == ("erp", "invoice")
    path = f"{RELATIONSHIPS}/{first['id']}"
    assert (await admin.get(path)).json() == ended == (await listed(admin))[0]

    withdrawn = await changed(admin, first, "withdraw", reason="wrong serial number")
    assert withdrawn == (await admin.get(path)).json()
    assert withdrawn["withdrawn_at"] > withdrawn["recorded_at"]
    why = {"withdrawn_by": "office", "withdrawn_reason": "wrong serial number"}
    assert withdrawn == ended | {"withdrawn_at": withdrawn["withdrawn_at"]} | why
    assert await changed(admin, first, "withdraw", reason="once more") == withdrawn
    assert await listed(admin) == []

    changes = await history(admin, first)
    assert [(row["change"], row["version"], *held(row), row["asserted_by"], row["reason"]) for row in changes] == [
        ("begun", 1, MARCH, None, "office", "sale"),
        ("corrected", 2, APRIL, None, "erp", "invoice"),
        ("ended", 3, APRIL, MAY, "office", "sold on"),
        ("withdrawn", 3, APRIL, MAY, "office", "wrong serial number"),
    ]
    assert [row["recorded_at"] for row in changes] == [
        *(row["recorded_at"] for row in (first, corrected, ended)),
        withdrawn["withdrawn_at"],
    ]
    one: list[dict[str, Any]] = []
    next_: str | None = ""
    while next_ is not None:
        page = (await admin.get(f"{path}/versions", params={"limit": 1} | ({"cursor": next_} if next_ else {}))).json()
        one, next_ = one + page["items"], page["next"]
    assert one == changes


async def test_asking_again_for_what_is_so_changes_nothing(admin: httpx.AsyncClient, db: asyncpg.Connection) -> None:
    ada = await make_party(admin, crm="778")
    body = {"subject": "meter-7", "role": "owner", "party": "crm:778", "valid_from": MARCH, "valid_to": None}
    first = await admin.post(RELATIONSHIPS, json=body)
    again = await admin.post(RELATIONSHIPS, json=body | {"party": ada, "reason": "said once more"})
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    assert again.headers["location"] == first.headers["location"]
    relation = first.json()
    for verb, times in (("correct", {"valid_from": APRIL, "valid_to": None}), ("end", {"at": MAY}), ("withdraw", {})):
        once = await changed(admin, relation, verb, **times, reason="once")
        assert await changed(admin, relation, verb, **times, reason="twice") == once
    assert await db.fetchval("select count(*) from relationship") == 3
    assert await db.fetchval("select count(*) from relationship_change") == 4


async def test_what_begins_now_is_begun_once_however_often_it_is_asked_for(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, bo = await make_party(admin, crm="778"), await make_party(admin)
    body = {"subject": "meter-7", "role": "owner", "party": "crm:778"}
    first = await admin.post(RELATIONSHIPS, json=body | {"reason": "sale"})
    again = await admin.post(RELATIONSHIPS, json=body | {"party": ada})
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    assert again.headers["location"] == first.headers["location"]
    refused(await admin.post(RELATIONSHIPS, json=body | {"party": bo}), 409, "conflict")  # another's
    refused(await admin.post(RELATIONSHIPS, json=body | {"valid_to": JUNE[:2] + "99" + JUNE[4:]}), 409, "conflict")
    earlier = await begun(admin, ada, "meter-8")
    assert (await admin.post(RELATIONSHIPS, json=body | {"subject": "meter-8"})).json() == earlier
    await changed(admin, first.json(), "end")
    anew = await admin.post(RELATIONSHIPS, json=body)
    assert (anew.status_code, anew.json()["id"] != first.json()["id"]) == (201, True)
    assert await db.fetchval("select count(*) from relationship_change") == 4


async def test_what_has_ended_does_not_end_anew_when_it_is_ended_now(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada = await make_party(admin)
    past = await begun(admin, ada, valid_to=APRIL)
    assert await changed(admin, past, "end") == past
    before = await db.fetchval("select clock_timestamp()")
    still = await changed(admin, await begun(admin, ada, "meter-8"), "end")
    assert before <= datetime.fromisoformat(still["valid_to"]) <= await db.fetchval("select clock_timestamp()")
    assert await changed(admin, still, "end") == still
    later = await begun(admin, ada, "meter-9", valid_to="2200-01-01T00:00:00Z")
    assert (await changed(admin, later, "end"))["valid_to"] < "2200"


async def test_what_needs_nothing_said_needs_no_body(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin))
    path = f"{RELATIONSHIPS}/{relation['id']}"
    ended = (await admin.post(f"{path}/end")).json()
    assert (ended["version"], ended["asserted_by"], ended["reason"]) == (2, "office", None)
    assert (await admin.post(f"{path}/withdraw")).json()["withdrawn_by"] == "office"
    refused(await admin.post(f"{path}/correct"), 422, "invalid_parameters")


async def test_a_relation_that_would_be_empty_is_refused_where_its_time_is(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin), valid_to=MAY)
    ahead = await begun(admin, await make_party(admin), "meter-8", valid_from="2200-01-01T00:00:00Z")
    for one, verb, body, pointer in (
        (relation, "end", {"at": MARCH}, "/at"),
        (relation, "end", {"at": "2026-02-01T00:00:00Z"}, "/at"),
        (ahead, "end", {}, "/at"),
        (relation, "correct", {"valid_to": MARCH}, "/valid_to"),
        (relation, "correct", {"valid_from": MAY}, "/valid_from"),
        (relation, "correct", {"valid_from": JUNE, "valid_to": APRIL}, "/valid_to"),
        (relation, "correct", {"reason": "nothing"}, "/valid_from"),
        (relation, "correct", {"valid_until": MAY}, "/valid_until"),
        (relation, "withdraw", {"at": MAY}, "/at"),
    ):
        problem = refused(await change(admin, one, verb, **body), 422, "invalid_parameters")
        assert [violation["pointer"] for violation in problem["violations"]] == [pointer], body
    assert await listed(admin) == [relation, ahead]


async def test_null_is_without_bound_and_what_is_left_out_stays(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin), valid_to=MAY)
    assert held(await changed(admin, relation, "correct", valid_from=None)) == (None, MAY)
    assert held(await changed(admin, relation, "correct", valid_to=None)) == (None, None)
    assert held(await changed(admin, relation, "correct", valid_from=APRIL, valid_to=JUNE)) == (APRIL, JUNE)


@pytest.mark.parametrize("verb", ["end", "correct", "withdraw", "versions"])
async def test_what_is_not_there_cannot_be_changed(admin: httpx.AsyncClient, verb: str) -> None:
    path = f"{RELATIONSHIPS}/01a202fd-12a9-75d6-a27e-21b5246620a3/{verb}"
    body = {"correct": {"valid_to": None}}.get(verb, {})
    answer = await (admin.get(path) if verb == "versions" else admin.post(path, json=body))
    assert "01a202fd" in refused(answer, 404, "not_found")["detail"]


async def test_only_an_administrator_changes_and_only_a_reader_reads(admin: httpx.AsyncClient, ask: Ask) -> None:
    relation = await begun(admin, await make_party(admin))
    reader, sender = await ask("desk", "reader"), await ask("fleet", "sender")
    for verb in ("end", "correct", "withdraw"):
        for caller in (reader, sender):
            refused(
                await change(caller, relation, verb, **({"valid_to": MAY} if verb == "correct" else {})),
                403,
                "forbidden",
            )
    assert await history(reader, relation)
    refused(await sender.get(f"{RELATIONSHIPS}/{relation['id']}/versions"), 403, "forbidden")


# -- what excludes what -----------------------------------------------------------------------------------------------


async def test_every_door_names_the_relation_that_is_in_its_way(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    first, second = await begun(admin, ada, valid_to=APRIL), await begun(admin, bo, valid_from=MAY)
    between = {"subject": "meter-7", "role": "owner", "party": bo, "valid_from": "2026-03-15T00:00:00Z"}
    for answer, other in (
        (await admin.post(RELATIONSHIPS, json=between | {"valid_to": APRIL}), first),
        (await admin.post(RELATIONSHIPS, json=between | {"valid_from": APRIL}), second),
        (await change(admin, first, "end", at=JUNE), second),
        (await change(admin, first, "correct", valid_to=None), second),
        (await change(admin, second, "correct", valid_from=None), first),
        (await change(admin, second, "correct", valid_from=MARCH, valid_to="2026-03-02T00:00:00Z"), first),
    ):
        problem = refused(answer, 409, "conflict")
        assert problem["relationship"] == other
        assert f"{other['id']}/end" in problem["detail"]
    assert await listed(admin) == [first, second]  # and each is as it was
    assert await admin.get("/v1/devices/meter-7")

    # Once the other makes room, each has its place.
    await changed(admin, second, "withdraw")
    assert held(await changed(admin, first, "end", at=JUNE)) == (MARCH, JUNE)


async def test_the_time_that_a_refusal_tells_is_free(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    await begun(admin, ada, valid_from="0900-01-01T00:00:00Z", valid_to="2026-03-01T12:00:00.250001Z")
    wanted = {"subject": "meter-7", "role": "owner", "party": bo, "valid_from": MARCH}
    detail = refused(await admin.post(RELATIONSHIPS, json=wanted), 409, "conflict")["detail"]
    starts, ends = re.findall(r"[0-9-]+T[0-9:.]+Z", detail)
    assert (starts, ends) == ("0900-01-01T00:00:00Z", "2026-03-01T12:00:00.250001Z")
    await begun(admin, bo, valid_from=ends)


async def test_a_relation_does_not_stand_in_its_own_way(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin), valid_to=APRIL)
    assert held(await changed(admin, relation, "end", at=MAY)) == (MARCH, MAY)
    assert held(await changed(admin, relation, "correct", valid_from=None, valid_to=APRIL)) == (None, APRIL)


async def test_what_was_withdrawn_stays_so_and_may_be_begun_anew(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    relation = await begun(admin, ada)
    withdrawn = await changed(admin, relation, "withdraw")
    for verb, body in (("end", {"at": MAY}), ("correct", {"valid_to": MAY})):
        problem = refused(await change(admin, relation, verb, **body), 409, "conflict")
        assert problem["relationship"] == withdrawn
        assert "withdrawn" in problem["detail"]
    anew = await begun(admin, ada)
    assert (anew["id"] != relation["id"], anew["version"]) == (True, 1)


@pytest.mark.parametrize(("verb", "body"), [("end", {}), ("correct", {"valid_to": JUNE})])
async def test_a_relation_of_a_party_to_itself_is_to_be_withdrawn(
    admin: httpx.AsyncClient, db: asyncpg.Connection, verb: str, body: dict[str, str]
) -> None:
    """The first release took them, and Postgres takes no new ones."""
    volt = await make_party(admin, "Volt", "supplier", erp="s-1")
    await db.execute("alter table relationship drop constraint relationship_with_another")
    id_ = await db.fetchval(
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
        "values ('party:' || $1::uuid, 'supplies', $1, false, 'supplier', 'supplier', '[2026-03-01Z,)') returning id",
        volt,
    )
    refusal = await change(admin, {"id": id_}, verb, **body)
    assert refusal.status_code == 409, refusal.text
    assert f"/v1/relationships/{id_}/withdraw" in refusal.json()["detail"]
    assert (await changed(admin, {"id": id_}, "withdraw"))["withdrawn_at"] is not None


async def test_batches_of_one_supplier_stand_side_by_side_and_each_but_once(admin: httpx.AsyncClient) -> None:
    cells = await make_party(admin, "Cells", "supplier")
    rows = [await begun(admin, cells, role="parts_by", batch=batch) for batch in ("a", "b", None)]
    assert [row["batch"] for row in rows] == ["a", "b", None]
    for row in rows:
        body = {"subject": "meter-7", "role": "parts_by", "party": cells, "valid_from": APRIL, "batch": row["batch"]}
        assert refused(await admin.post(RELATIONSHIPS, json=body), 409, "conflict")["relationship"] == row
    assert (await changed(admin, rows[0], "end", at=MAY))["batch"] == "a"


@pytest.mark.parametrize(
    ("role", "subject", "holder"),
    [
        ("owner", None, "customer"), ("owner", None, "vendor"), ("user", None, "employee"), ("sold_by", None, "vendor"),
        ("serviced_by", None, "partner"), ("installed_by", None, "partner"), ("made_by", None, "supplier"),
        ("parts_by", None, "supplier"), ("buys_from", "customer", "vendor"), ("cared_for_by", "customer", "employee"),
        ("works_for", "employee", "vendor"), ("supplies", "supplier", "vendor"),
    ],
)  # fmt: skip
async def test_a_role_joins_its_kinds_and_no_others(
    admin: httpx.AsyncClient, db: asyncpg.Connection, role: str, subject: str | None, holder: str
) -> None:
    parties = {kind: await make_party(admin, kind, kind) for kind in KINDS}
    other = await make_party(admin, "another", subject) if subject else None
    name = f"party:{other}" if other else "meter-7"
    joined = await db.fetch(
        "select party_kind from role_kind where role = $1 and subject_kind = $2", role, subject or "device"
    )
    assert holder in {row["party_kind"] for row in joined}
    for kind, party in parties.items():
        body = {"subject": name, "role": role, "party": party, "valid_from": MARCH, "valid_to": APRIL}
        answer = await admin.post(RELATIONSHIPS, json=body)
        if kind not in {row["party_kind"] for row in joined}:
            problem = refused(answer, 422, "invalid_parameters")
            assert problem["violations"][0]["pointer"] == "/party"
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await db.execute(
                    "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
                    "select $1, $2, $3, exclusive, $4, $5, '[2030-01-01Z,)' from role where name = $2",
                    name, role, party, subject or "device", kind,
                )  # fmt: skip
        else:
            assert answer.status_code == 201, answer.text
            await changed(admin, answer.json(), "withdraw")


async def test_the_tour_says_which_kinds_each_role_joins(db: asyncpg.Connection) -> None:
    said = set()
    page = (Path(__file__).parents[2] / "docs/api.md").read_text()
    for roles, subjects, parties, number in re.findall(
        r"^\| (`\w+`.*) \| (.*) \| (.*) \| (one|several) \|$", page, re.MULTILINE
    ):
        holders = parties.partition(", once")[0].replace("party of any kind", ", ".join(KINDS)).split(", ")
        said |= {
            (role, number == "one", subject, party)
            for role in re.findall(r"`(\w+)`", roles) for subject in subjects.split(", ") for party in holders
        }  # fmt: skip
    assert said == {
        tuple(row) for row in await db.fetch("select role, exclusive, subject_kind, party_kind from role_kind")
    }


async def test_postgres_knows_the_kinds_of_the_parties_by_itself(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, volt = await make_party(admin), await make_party(admin, "Volt", "vendor")
    insert = (
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
        "values ($1, $2, $3, $4, $5, $6, '(,)')"
    )
    for subject, role, party, exclusive, subject_kind, party_kind in (
        ("meter-7", "sold_by", ada, True, "device", "vendor"),  # she is no vendor
        ("meter-7", "sold_by", volt, False, "device", "vendor"),  # that role is exclusive
        (f"party:{volt}", "buys_from", volt, False, "customer", "vendor"),  # it is no customer
        (f"party:{ada}", "owner", volt, True, "device", "vendor"),  # she is no device
        ("meter-7", "buys_from", volt, False, "customer", "vendor"),  # it is no party
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await db.execute(insert, subject, role, party, exclusive, subject_kind, party_kind)
    await db.execute("insert into role_kind values ('works_for', false, 'vendor', 'vendor')")
    with pytest.raises(asyncpg.CheckViolationError, match="with_another"):
        await db.execute(insert, f"party:{volt}", "works_for", volt, False, "vendor", "vendor")


# -- several at once --------------------------------------------------------------------------------------------------


async def test_of_two_corrections_at_once_both_are_made_one_after_the_other(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    relation = await begun(admin, await make_party(admin))
    starts = [f"2026-03-{day:02}T00:00:00Z" for day in range(2, 6)]
    answers = await asyncio.gather(*(insisting(admin, relation, "correct", valid_from=start) for start in starts))
    assert [answer.status_code for answer in answers] == [200] * len(starts)
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, len(starts) + 2))
    rows = await db.fetch("select version, recorded from relationship order by version")
    for before, after in itertools.pairwise(rows):
        assert before["recorded"].upper == after["recorded"].lower
    assert rows[-1]["recorded"].upper is None


async def test_of_two_corrections_of_one_version_only_the_first_is_made(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin))
    tag = (await admin.get(f"{RELATIONSHIPS}/{relation['id']}")).headers["etag"]
    answers = await asyncio.gather(
        *(insisting(admin, relation, "correct", valid_from=start, if_match=tag) for start in (APRIL, MAY))
    )
    made, late = sorted(answers, key=lambda answer: answer.status_code)
    assert (made.status_code, made.json()["version"]) == (200, 2)
    problem = refused(late, 412, "precondition_failed")
    assert problem["relationship"] == made.json()
    assert "version 2" in problem["detail"]


async def test_if_match_holds_a_change_to_the_version_that_was_seen(admin: httpx.AsyncClient) -> None:
    relation = await begun(admin, await make_party(admin))
    path = f"{RELATIONSHIPS}/{relation['id']}"
    for wrong in ('"2"', 'W/"1"', "1", '"x"', '"1-withdrawn"', ""):
        refused(await change(admin, relation, "end", at=MAY, if_match=wrong), 412, "precondition_failed")
    ended = await change(admin, relation, "end", at=MAY, if_match='"7", "1"')
    assert (ended.status_code, ended.headers["etag"]) == (200, '"2"')
    # The answer was lost, and the client asks again: what it wants is so, and it is told.
    again = await change(admin, relation, "end", at=MAY, if_match='"1"')
    assert (again.status_code, again.json(), again.headers["etag"]) == (200, ended.json(), '"2"')
    assert (await admin.get(path, headers={"if-none-match": '"2"'})).status_code == 304
    assert (await admin.get(path, headers={"if-none-match": '"1"'})).json() == ended.json()
    refused(await change(admin, relation, "withdraw", if_match='"1"'), 412, "precondition_failed")
    withdrawn = await change(admin, relation, "withdraw", if_match="*")
    assert (withdrawn.status_code, withdrawn.headers["etag"]) == (200, '"2-withdrawn"')
    assert not withdrawn.json().keys() & {"withdrawn_reason"}, "none was given"
    assert (await admin.get(path, headers={"if-none-match": '"2"'})).status_code == 200


async def test_changes_are_numbered_in_the_order_in_which_they_can_be_read(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    parties = [await make_party(admin, str(n)) for n in range(3)]

    async def work(worker: int, party: str) -> None:
        for n in range(10):
            relation = await begun(admin, party, f"meter-{worker}-{n}")
            assert (await insisting(admin, relation, "end", at=MAY)).status_code == 200

    at_work = asyncio.gather(*(work(*each) for each in enumerate(parties)))
    seen: list[int] = []
    while not at_work.done():
        seen += [row["number"] for row in await db.fetch(
            "select number from relationship_change where number <> all ($1::bigint[]) order by number", seen
        )]  # fmt: skip
        await asyncio.sleep(0)
    await at_work
    total = await db.fetchval("select count(*) from relationship_change")
    assert total == 60
    assert len(seen) > 30, "it was not looked at while they worked"
    assert seen == sorted(seen), "one came to light after a later one"


# -- what we knew when ------------------------------------------------------------------------------------------------


async def test_known_at_answers_what_was_known_then_and_as_of_what_held_then(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    never = await db.fetchval("select clock_timestamp()")
    first = await begun(admin, ada)
    ended = await changed(admin, first, "end", at=MAY)
    second = await begun(admin, bo, valid_from=MAY)
    moved = await changed(admin, first, "end", at=APRIL)
    back = await changed(admin, second, "correct", valid_from=APRIL)
    gone = await changed(admin, first, "withdraw")

    steps = [
        (first["recorded_at"], [first]),
        (ended["recorded_at"], [ended]),
        (second["recorded_at"], [ended, second]),
        (moved["recorded_at"], [moved, second]),
        (back["recorded_at"], [moved, back]),
        (gone["withdrawn_at"], [back]),
    ]
    instant = timedelta(microseconds=1)
    assert await listed(admin, known_at=never.isoformat()) == []
    known: list[dict[str, Any]] = []
    for at, expected in steps:
        for filters in ({}, {"subject": "meter-7"}, {"role": "owner"}):
            before = datetime.fromisoformat(at) - instant
            assert await listed(admin, known_at=before.isoformat(), **filters) == known, (at, filters)
            assert await listed(admin, known_at=at, **filters) == expected, (at, filters)
        for party in (ada, bo):
            assert await listed(admin, known_at=at, party=party) == [row for row in expected if row["party"] == party]
        known = expected
    assert await listed(admin) == await listed(admin, known_at="2200-01-01T00:00:00Z") == known

    third = second["recorded_at"]
    for as_of, expected in ((MARCH, [ended]), (APRIL, [ended]), (MAY, [second]), ("2026-02-28T23:59:59Z", [])):
        assert await listed(admin, known_at=third, as_of=as_of) == expected
    assert await listed(admin, as_of=APRIL) == [back]
    assert await listed(admin, as_of=MARCH) == []


async def test_one_relation_is_read_as_it_was_known(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    first = await begun(admin, ada)
    path = f"{RELATIONSHIPS}/{first['id']}"
    second = await changed(admin, first, "correct", valid_from=APRIL)
    withdrawn = await changed(admin, first, "withdraw")
    for known_at, version in ((first["recorded_at"], first), (second["recorded_at"], second)):
        answer = await admin.get(path, params={"known_at": known_at})
        assert answer.json() == version
        etag = answer.headers["etag"]
        again = await admin.get(path, params={"known_at": known_at}, headers={"if-none-match": etag})
        assert (again.status_code, again.headers["etag"]) == (304, etag)
    for known_at in (MARCH, withdrawn["withdrawn_at"]):
        refused(await admin.get(path, params={"known_at": known_at}), 404, "not_found")


async def test_a_clock_that_is_set_back_changes_nothing_about_the_order_of_what_we_knew(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    relation = await begun(admin, ada)
    # As if the clock had been an hour ahead when that was recorded, and had been set right since.
    await db.execute("update relationship set recorded = tstzrange(lower(recorded) + interval '1 hour', null)")
    ahead = (await listed(admin))[0]
    corrected = await changed(admin, relation, "correct", valid_from=APRIL)
    gone = await changed(admin, relation, "withdraw")
    after = await begun(admin, bo)  # at the same valid times as what was withdrawn
    times = [ahead["recorded_at"], corrected["recorded_at"], gone["withdrawn_at"], after["recorded_at"]]
    assert times == sorted(times)
    assert len(set(times[:3])) == 3
    for at, expected in zip(times[:2] + times[3:], ([ahead], [corrected], [after]), strict=True):
        assert await listed(admin, known_at=at, subject="meter-7") == expected
    # What begins from now on does so by the clock, and not by that.
    now = (await admin.post(RELATIONSHIPS, json={"subject": "meter-7", "role": "user", "party": bo})).json()
    assert now["valid_from"] < times[0] < now["recorded_at"]


# -- what a change moves ----------------------------------------------------------------------------------------------


async def test_a_change_tells_exactly_which_events_it_moved(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await make_party(admin)
    at = {name: datetime.fromisoformat(text) for name, text in {"march": MARCH, "april": APRIL, "may": MAY}.items()}
    hour, instant = timedelta(hours=1), timedelta(microseconds=1)
    await attach(
        *(Sent("meter-7", f"m{n}", at["march"] + n * hour) for n in range(31 * 24)),
        Sent("meter-7", "status", at["april"] - instant, "device.status"),
        Sent("meter-7", "first", at["april"], "device.status"),
        Sent("meter-7", "late", at["may"] + hour, "device.fault"),
        Sent("meter-8", "another", at["march"]),
    )
    relation = await begun(admin, ada, valid_from="2026-03-10T12:30:00Z")
    await changed(admin, relation, "end", at=APRIL)
    await changed(admin, relation, "correct", valid_from=MARCH)
    user = await begun(admin, ada, role="user", valid_from="2026-03-31T22:00:00Z", valid_to=MAY)
    await changed(admin, relation, "withdraw")

    def told(row: dict[str, Any]) -> list[tuple[Any, ...]]:
        assert all(
            move["party"] == ada and move["events"] == sum(move["events_by_type"].values()) for move in row["moves"]
        )
        return [(move["direction"], move["starts"], move["ends"], move["events_by_type"]) for move in row["moves"]]

    measured = 31 * 24
    before_tenth = 9 * 24 + 13  # to 12:00 on the tenth
    begun_, ended, corrected, withdrawn = await history(admin, relation)
    assert told(begun_) == [
        ("gained", "2026-03-10T12:30:00Z", None,
         {"device.fault": 1, "device.measurement": measured - before_tenth, "device.status": 2}),
    ]  # fmt: skip
    assert told(ended) == [("lost", APRIL, None, {"device.fault": 1, "device.status": 1})]
    assert told(corrected) == [("gained", MARCH, "2026-03-10T12:30:00Z", {"device.measurement": before_tenth})]
    # What she holds as its user too does not come or go with the other role.
    assert told((await history(admin, user))[0]) == [("gained", APRIL, MAY, {"device.status": 1})]
    assert told(withdrawn) == [("lost", MARCH, "2026-03-31T22:00:00Z", {"device.measurement": measured - 2})]
    assert (await admin.get(f"/v1/parties/{ada}")).json()["events_by_type"] == {
        "device.measurement": 2,
        "device.status": 2,
    }


async def test_a_change_between_parties_moves_what_is_said_of_one_under_all_its_names(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada, volt = await make_party(admin, crm="778", shop="a:9"), await make_party(admin, "Volt", "vendor")
    april = datetime.fromisoformat(APRIL)
    names = (f"party:{ada}", "party:crm:778", "party:shop:a:9", "party:crm:779")
    await attach(*(Sent(name, "1", april, "commerce.purchase", source="shop") for name in names))
    relation = await begun(admin, volt, "party:crm:778", role="buys_from", valid_from=None, valid_to=MAY)
    assert (await history(admin, relation))[0]["moves"] == [
        {"party": volt, "direction": "gained", "starts": None, "ends": MAY, "events": 3,
         "events_by_type": {"commerce.purchase": 3}},
    ]  # fmt: skip


async def test_what_a_linked_party_holds_too_does_not_move(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    linked = await admin.post(f"/v1/parties/{ada}/links", json={"party": bo, "reason": "the same person"})
    assert linked.status_code in {200, 201}, linked.text
    await begun(admin, ada, valid_to=MAY)
    user = await begun(admin, bo, role="user", valid_from=APRIL)
    (move,) = (await history(admin, user))[0]["moves"]
    assert (move["party"], move["direction"], move["starts"], move["ends"]) == (bo, "gained", MAY, None)


async def test_a_correction_in_the_middle_moves_two_ranges_in_their_order(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    ada = await make_party(admin)
    relation = await begun(admin, ada)
    await changed(admin, relation, "correct", valid_from=APRIL, valid_to=MAY)
    moves = (await history(admin, relation))[-1]["moves"]
    assert [(move["direction"], move["starts"], move["ends"], move["events"]) for move in moves] == [
        ("lost", MARCH, APRIL, 0), ("lost", MAY, None, 0),
    ]  # fmt: skip
    assert Counter(row["direction"] for row in await db.fetch("select direction from relationship_move")) == {
        "gained": 1,
        "lost": 2,
    }


# -- plans ------------------------------------------------------------------------------------------------------------


async def test_what_was_known_is_found_by_index(admin: httpx.AsyncClient, db: asyncpg.Connection) -> None:
    await db.execute("insert into party (kind, name) select 'customer', n::text from generate_series(1, 3000) n")
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid, recorded)
        select 'd' || name || '-' || n, 'user', id, false, 'device', kind, '[2026-01-01Z,)',
               tstzrange('2026-01-01Z', case when n = 2 then '2026-02-01Z'::timestamptz end)
        from party cross join generate_series(1, 2) n
    """)
    await db.execute("vacuum analyze relationship")
    party = await db.fetchval("select id from party where name = '1500'")
    for filters in ({"subject": "d1500-2"}, {"party": str(party)}):
        assert len(await listed(admin, known_at="2026-01-15T00:00:00Z", **filters)) == (2 if "party" in filters else 1)
        await db.execute("set plan_cache_mode = force_generic_plan")
        column, value = next(iter(filters.items()))
        plan = "\n".join(
            row[0] for row in await db.fetch(
                f"explain (analyze, buffers off, timing off, summary off) select id from relationship "
                f"where {column} = '{value}' and not upper_inf(recorded) and recorded @> '2026-01-15Z'::timestamptz"
            )
        )  # fmt: skip
        assert "Index Cond: ((subject = 'd1500-2'" in plan or "relationship_party_before" in plan, plan
