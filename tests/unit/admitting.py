"""Bodies and events to admit, and what becomes of them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import orjson
import pytest

from drm_ingest.edge.admit import Admit, Admitted
from drm_ingest.edge.credentials import Credential
from drm_ingest.errors import Refusal
from drm_ingest.event import Assigned, Receipt
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

SENDER = Credential("1", "fleet", "sender", None)
DEVICE = Credential("2", "gateway", "sender", "meter-7")
READER = Credential("3", "analyst", "reader", None)
RECEIVED_AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
RECEIPT = Receipt(RECEIVED_AT, "request-1", "fleet", user_agent="test/1.0")

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "a-1",
    "source": "gateway-1",
    "type": "device.measurement",
    "subject": "meter-7",
    "time": "2026-11-22T09:59:58.5+01:00",
    "data": {"temperature": 21.5, "battery": 87},
}
ABSENT = object()


@cache
def schemas() -> Schemas:
    return Schemas.load()


@cache
def admit(**settings: Any) -> Admit:
    """Admit by these settings; it keeps nothing of what it admitted, and settings take milliseconds to make."""
    return Admit(Settings(**settings), schemas())


def event(**changes: object) -> bytes:
    """EVENT with attributes changed, or left out (ABSENT)."""
    return orjson.dumps({name: value for name, value in (EVENT | changes).items() if value is not ABSENT})


def raw_event(data: bytes) -> bytes:
    """EVENT with these bytes for data."""
    return event(data=ABSENT)[:-1] + b',"data":' + data + b"}"


def send(
    body: bytes,
    content_type: str = "application/json",
    *,
    encoding: str = "",
    headers: Mapping[str, str] | None = None,
    credential: Credential = SENDER,
    receipt: Receipt = RECEIPT,
    **settings: Any,
) -> Admitted:
    return admit(**settings).body(
        content_type=content_type.encode(), content_encoding=encoding.encode(), ce_headers=headers,
        body=body, credential=credential, receipt=receipt,
    )  # fmt: skip


def refusal(body: bytes, content_type: str = "application/json", **more: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        send(body, content_type, **more)
    return refused.value


def rejected(body: bytes, content_type: str = "application/json", **more: Any) -> tuple[str, str | None]:
    """The code and pointer of the one event in the body, which must be refused."""
    admitted = send(body, content_type, **more)
    assert not admitted.records
    [result] = admitted.results
    assert (result.index, result.status) == (0, "rejected")
    assert result.detail
    return result.code, result.pointer


def codes(admitted: Admitted) -> list[str]:
    return [result.code for result in admitted.results]


def only_value(admitted: Admitted) -> bytes:
    [(_, value, _)] = admitted.records
    return value


def assigned(admitted: Admitted) -> Assigned | None:
    [(_, _, headers)] = admitted.records
    found = dict(headers).get("assigned")
    return None if found is None else msgspec.json.decode(found, type=Assigned)
