"""References: what may never identify anyone, and what is kept keyed."""

import contextlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drm_ingest.reference import NotAReference, identifies_nobody, kept

KEY = b"a key of at least thirty-two bytes"


@pytest.mark.parametrize(
    "ref",
    [
        "null", "NULL", " None ", "nil", "undefined", "NaN", "n/a", "0", "000", "0.0",
        "'0'", "00:00:00:00:00:00", "-1", "-", "???", " ", "''",
        "anonymous", "Anonymous", "unknown", "GUEST", "test", "Test-User", "test_user", "admin", "true",
        "False", "[object Object]", "00000000-0000-0000-0000-000000000000", "{00000000-0000-0000-0000-000000000000}",
        "ffffffff-ffff-ffff-ffff-ffffffffffff", "0x0000", "ｎｕｌｌ", "ＮＵＬＬ", "\u00a0null\u2003", "user_id",
        "distinct_id",
        "test@example.com", "TEST@acme.se", "test+1@acme.se", "noreply@acme.se", "no-reply@acme.se", "No_Reply@acme.se",
        "<test@acme.se>", "@acme.se", "not set", "te\u00adst@acme.se",
        "0\u200b", "\ufeff0", "\u0660", "N / A", "-1.0", "undefined undefined", "null_null", "null-undefined",
    ],
)  # fmt: skip
def test_a_value_that_may_stand_for_anybody_identifies_nobody(ref: str) -> None:
    assert identifies_nobody(ref)
    with pytest.raises(NotAReference, match="identifies nobody"):
        kept("crm", ref, None)


@pytest.mark.parametrize(
    "ref",
    ["778", "1", "a9", "v-12", "10", "007", "-12", "nullo", "Testa", "admin@acme.se", "ada@test.com", "guests-7", "ü",
     "东京", "a/9:ä", "00000000-0000-0000-0000-000000000001", "0a", "0-0",
     "testing-7", "latest", "o'neill", "null-island-42", "contact@client.id", "admin@mail.id"],
)  # fmt: skip
def test_a_value_of_ones_own_identifies(ref: str) -> None:
    assert not identifies_nobody(ref)
    assert kept("crm", ref, None) == ("crm", ref)


@given(st.text(max_size=200), st.sampled_from(["crm", "email", "phone", "email-hmac"]))
def test_any_text_is_kept_or_refused_with_a_sentence(ref: str, namespace: str) -> None:
    with contextlib.suppress(NotAReference):
        kept_as, value = kept(namespace, ref, KEY)
        assert kept_as == (namespace if namespace == "crm" else namespace.removesuffix("-hmac") + "-hmac")
        assert value == ref or (kept_as != "crm" and len(value) == 64)


@pytest.mark.parametrize("address", ["ada@acme.se", "Ada@Acme.SE", " ada@acme.se "])
def test_a_mail_address_is_kept_as_its_keyed_hash_however_it_is_written(address: str) -> None:
    expected = hmac.new(KEY, b"ada@acme.se", "sha256").hexdigest()
    assert kept("email", address, KEY) == ("email-hmac", expected)
    assert kept("email-hmac", expected.upper(), None) == ("email-hmac", expected)


@pytest.mark.parametrize("number", ["+46701234567", "0046 70-123 45 67", "+46 (70) 123.45.67"])
def test_a_phone_number_is_kept_as_its_keyed_hash_however_it_is_written(number: str) -> None:
    assert kept("phone", number, KEY) == ("phone-hmac", hmac.new(KEY, b"+46701234567", "sha256").hexdigest())


@pytest.mark.parametrize(
    ("namespace", "ref", "key"),
    [("email", "ada@acme.se", None), ("phone", "+46701234567", None), ("email", "ada", KEY), ("phone", "0701", KEY),
     ("email-hmac", "ada@acme.se", KEY), ("email-hmac", "5d41402abc4b2a76b9719d911017c592", KEY), ("phone", "x", KEY),
     ("email", "test@acme.se", KEY), ("email-hmac", "0" * 64, KEY)],
)  # fmt: skip
def test_neither_is_kept_in_the_clear_nor_as_what_it_is_not(namespace: str, ref: str, key: bytes | None) -> None:
    with pytest.raises(NotAReference):
        kept(namespace, ref, key)
