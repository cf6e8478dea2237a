"""What a credential may send, and how it is told what it may not."""

import orjson
import pytest
from tests.unit.admitting import event, send

from drm_ingest.edge.admit import Admitted
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.scope import Scope


def gateway(
    devices: list[str] | None = None, types: list[str] | None = None, *, parties: bool = False, identities: bool = False
) -> Credential:
    scope = Scope.of(devices, types, parties=parties, identities=identities)
    return Credential("1", "gateway", "sender", None, scope)


def told(credential: Credential, *events: bytes) -> Admitted:
    return send(b"[" + b",".join(events) + b"]", credential=credential)


def problem(admitted: Admitted) -> dict[str, object]:
    answer: dict[str, object] = orjson.loads(admitted.answer("request-1"))
    return answer


def test_without_any_limit_there_is_no_scope() -> None:
    assert Scope.of(None, None, parties=True, identities=True) is None


@pytest.mark.parametrize("device", ["meter-7", "pump-1", "pump-", "pump-12/3"])
def test_a_gateway_writes_for_the_devices_listed_for_it(device: str) -> None:
    assert told(gateway(["meter-7", "pump-*"]), event(subject=device)).accepted == 1


@pytest.mark.parametrize("device", ["meter-70", "meter-", "METER-7", "pump", "x", "*", "pump*", "party", "meter-7 "])
def test_a_gateway_writes_for_no_other_device(device: str) -> None:
    admitted = told(gateway(["meter-7", "pump-*"]), event(subject=device))
    assert [result.code for result in admitted.results] == ["subject_forbidden"]
    assert "(devices)" in admitted.results[0].detail


@pytest.mark.parametrize("entry", ["*-meter", "site-*-meter", "*-*"])
def test_a_star_that_is_not_at_the_end_is_a_letter(entry: str) -> None:
    own = entry.removesuffix("*")
    assert told(gateway([entry]), event(subject=own)).accepted == 1
    for other in ("a-meter", "site-a-meter", "-meter", "site--meter"):
        assert not told(gateway([entry]), event(subject=other)).accepted


@pytest.mark.parametrize(
    ("limits", "subject", "type_", "code", "missing"),
    [
        ({"types": ["device.*"]}, "meter-7", "app.interaction", "type_forbidden", "types"),
        ({"types": ["device.status"]}, "meter-7", "device.status2", "type_forbidden", "types"),
        ({"parties": False}, "party:crm:778", "device.status", "subject_forbidden", "parties"),
        ({"identities": False}, "meter-7", "identity.linked", "type_forbidden", "identities"),
        ({"identities": False, "types": ["*"]}, "meter-7", "identity.x", "type_forbidden", "identities"),
        ({"devices": ["meter-*"], "parties": False}, "party:crm:778", "device.status", "subject_forbidden", "parties"),
    ],
)
def test_each_part_of_a_scope_holds_and_is_named(
    limits: dict[str, object], subject: str, type_: str, code: str, missing: str
) -> None:
    credential = gateway(**{"parties": True, "identities": True} | limits)  # type: ignore[arg-type]
    admitted = told(credential, event(subject=subject, type=type_))
    assert [result.code for result in admitted.results] == [code]
    assert (admitted.all_forbidden, problem(admitted)["missing_scopes"]) == (True, [missing])


def test_parties_do_not_depend_on_the_list_of_devices() -> None:
    purchase = event(subject="party:crm:778", type="acme.thing")
    assert told(gateway(["meter-*"], parties=True), purchase).accepted == 1


def test_one_foreign_event_is_rejected_by_itself() -> None:
    admitted = told(gateway(["meter-*"]), event(id="1"), event(id="2", subject="pump-1"), event(id="3"))
    assert (admitted.accepted, admitted.all_forbidden) == (2, False)
    assert [(result.index, result.code) for result in admitted.results] == [(1, "subject_forbidden")]


def test_when_every_event_is_foreign_the_answer_names_what_is_missing_and_each_event() -> None:
    credential = gateway(["meter-*"])
    admitted = told(credential, event(subject="pump-1"), event(subject="party:crm:778"))
    answer = problem(admitted)
    assert (answer["code"], answer["status"], answer["accepted"]) == ("forbidden", 403, 0)
    assert answer["missing_scopes"] == ["devices", "parties"]
    assert "devices, parties" in str(answer["detail"])
    results = answer["results"]
    assert isinstance(results, list)
    assert len(results) == 2


def test_a_device_that_writes_as_another_is_told_which_it_is() -> None:
    device = Credential("1", "fleet", "sender", "meter-7")
    answer = problem(told(device, event(subject="meter-8"), event(subject="party:crm:778")))
    assert (answer["code"], answer["missing_scopes"]) == ("forbidden", ["devices"])
    assert str(answer["detail"]).startswith("This token or key writes only as its own device, meter-7;")


def test_what_is_wrong_besides_is_no_matter_of_scope() -> None:
    admitted = told(gateway(["meter-*"]), event(subject="pump-1"), event(time="yesterday"))
    assert (admitted.all_forbidden, problem(admitted)["code"]) == (False, "all_rejected")


@pytest.mark.parametrize("name", ["subject", "type"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_name_given_twice_gets_nobody_past_the_scope(name: str, escaped: bool) -> None:
    """Readers differ in which of the two they take."""
    foreign = {"subject": b'"pump-1"', "type": b'"identity.linked"'}[name]
    again = name.encode() if not escaped else b"\\u%04x" % ord(name[0]) + name[1:].encode()
    for twice in (
        b'{"%b":%b,' % (again, foreign) + event()[1:],
        event()[:-1] + b',"%b":%b}' % (again, foreign),
    ):
        assert not told(gateway(["meter-*"]), twice).accepted
