"""What a token must be to be believed, at each limit; and what a public key must be to be registered."""

import hashlib
import hmac
import json
import time
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.tokens import Private, claims, new_private_key, private_pem, public, raw_token, segment, token

from drm_ingest import public_key
from drm_ingest.edge.token import Claims, FleetKey, Verify
from drm_ingest.errors import Refusal
from drm_ingest.guesses import ADDRESSES_MAX, Guesses
from drm_ingest.settings import Settings

SETTINGS = Settings(token_lifetime_max_s=3600, token_leeway_s=30)
VERIFY = Verify(SETTINGS)
ED, ES = new_private_key("EdDSA"), new_private_key("ES256")


def fleet(key: Private) -> FleetKey:
    made = public(key)
    return FleetKey(
        UUID(int=1), made.thumbprint, made.algorithm, public_key.load(made.pem), "fleet", "1", "sender", None, 2e9 * 2
    )


def verified(text: str, key: Private = ED, stated_at: float | None = None) -> Claims:
    return VERIFY.claims(text, fleet(key), time.time(), stated_at)


def refused(text: str, key: Private = ED, stated_at: float | None = None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        verified(text, key, stated_at)
    assert refusal.value.problem.status == 401
    assert len(text) < 20 or text not in str(refusal.value.body(""))
    return refusal.value


@pytest.mark.parametrize("key", [ED, ES])
def test_a_token_of_the_fleets_key_is_believed(key: Private) -> None:
    assert verified(token(key, "meter-7"), key).sub == "meter-7"
    assert verified(token(key, "meter-7", aud=["other", "drm-ingest"], nbf=time.time()), key).sub == "meter-7"


FORGED: dict[str, str] = {
    "of another key": token(new_private_key(), "meter-7"),
    "of another kind of key": token(ES, "meter-7"),
    "alg none": raw_token({"alg": "none", "kid": "k"}, claims("meter-7"), b""),
    "alg none, with another's signature": raw_token({"alg": "None", "kid": "k"}, claims("meter-7"), b"x" * 64),
    "an HMAC with the public key": raw_token({"alg": "HS256", "kid": "k"}, claims("meter-7"), b"x" * 32),
    "without a signature": raw_token({"alg": "EdDSA", "kid": "k"}, claims("meter-7"), b""),
    "with a signature of zeroes": raw_token({"alg": "EdDSA", "kid": "k"}, claims("meter-7"), bytes(64)),
    "without a kid": raw_token({"alg": "EdDSA"}, claims("meter-7"), bytes(64)),
    "with a key of its own": raw_token(
        {"alg": "EdDSA", "kid": "k", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}, claims("meter-7"), bytes(64)
    ),
    "with a critical extension": raw_token({"alg": "EdDSA", "kid": "k", "crit": ["b64"], "b64": False}, {}, bytes(64)),
    "header that is no object": raw_token([], {}, b""),
    "header that is no JSON": "e30x.e30.AA",
    "header that is no base64": "\xff\xfe.e30.AA",
    "header nested too deeply": f"{segment(json.loads('[' * 500 + ']' * 500))}.e30.AA",
    "empty parts": "..",
    "kid that is no text": raw_token({"alg": "EdDSA", "kid": 7}, claims("meter-7"), bytes(64)),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_token_is_refused(kind: str) -> None:
    assert refused(FORGED[kind]).problem.code == "unauthenticated"


def test_an_hmac_with_the_public_key_as_its_secret_is_refused_in_each_form() -> None:
    key = ED.public_key()
    for secret in (
        key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        key.public_bytes(Encoding.Raw, PublicFormat.Raw),
    ):
        head = f"{segment({'alg': 'HS256', 'kid': public(ED).thumbprint})}.{segment(claims('meter-7'))}"
        signature = hmac.new(secret, head.encode(), hashlib.sha256).digest()
        assert refused(f"{head}.{jwt.utils.base64url_encode(signature).decode()}").problem.code == "unauthenticated"


def test_a_token_changed_anywhere_is_refused() -> None:
    header, said, signature = token(ED, "meter-7").split(".")
    for changed in (
        f"{header}.{segment(claims('meter-8'))}.{signature}",
        f"{segment({'alg': 'EdDSA', 'kid': 'other'})}.{said}.{signature}",
        f"{header}.{said}.{signature[:-4]}AAAA",
        f"{header}.{said}.{signature[:-10]}",
    ):
        assert refused(changed).problem.code == "unauthenticated"


GOOD = token(ED, "meter-7", lifetime_s=3600).encode()


@given(st.data())
def test_one_flipped_byte_is_enough(data: st.DataObject) -> None:
    good = GOOD
    at = data.draw(st.integers(0, len(good) - 2))  # of the last character not every bit counts
    other = data.draw(st.integers(33, 126).filter(lambda byte: byte != good[at]))
    refused((good[:at] + bytes([other]) + good[at + 1 :]).decode())


@given(st.text(max_size=300))
def test_whatever_else_is_sent_is_refused_and_raises_nothing_else(text: str) -> None:
    refused(text)
    refused(f"{segment({'alg': 'EdDSA', 'kid': 'k'})}.{text}")


@pytest.mark.parametrize(
    "said",
    [
        {"sub": None}, {"sub": 7}, {"sub": ""}, {"sub": "x" * 201}, {"sub": "party:crm:778"}, {"sub": "a\0b"},
        {"aud": None}, {"aud": "somebody-else"}, {"aud": []}, {"aud": 7}, {"iat": None}, {"exp": None},
        {"iat": "now"}, {"exp": True}, {"nbf": "now"}, {"lifetime_s": 3601}, {"lifetime_s": 0}, {"lifetime_s": -5},
        {"exp": 1e308}, {"exp": 10**400},
    ],
)  # fmt: skip
def test_a_token_that_says_the_wrong_thing_is_refused(said: dict[str, Any]) -> None:
    refusal = refused(token(ED, "meter-7", **said) if "sub" not in said else token(ED, **{"device": "x"} | said))
    assert refusal.problem.code == "unauthenticated"


def test_a_token_that_is_too_large_is_refused_before_it_is_looked_at() -> None:
    refusal = refused(token(ED, "meter-7", more="x" * 4000))
    assert refusal.members["limit"] == SETTINGS.token_bytes_max


def test_times_hold_within_the_leeway_and_not_beyond() -> None:
    assert verified(token(ED, "meter-7", age_s=600 + 25, lifetime_s=600))
    assert verified(token(ED, "meter-7", age_s=-25))
    assert refused(token(ED, "meter-7", age_s=600 + 35, lifetime_s=600)).problem.code == "token_expired"
    assert refused(token(ED, "meter-7", age_s=-35)).problem.code == "clock_skew"
    assert refused(token(ED, "meter-7", nbf=time.time() + 35)).problem.code == "clock_skew"


def test_a_wrong_clock_is_told_with_our_time() -> None:
    ahead = refused(token(ED, "meter-7", age_s=-7200))
    assert ahead.problem.code == "clock_skew"
    assert abs(_seconds(ahead.members["server_time"]) - time.time()) < 5

    slow = token(ED, "meter-7", age_s=7200)  # just made, by a clock two hours slow
    assert refused(slow, stated_at=time.time() - 7200).problem.code == "clock_skew"
    # It may as well be old: then whoever sends it knows the right time.
    for stated_at in (None, time.time()):
        expired = refused(slow, stated_at=stated_at)
        assert expired.problem.code == "token_expired"
        assert expired.members["server_time"]


def _seconds(text: object) -> float:
    from datetime import datetime

    return datetime.fromisoformat(str(text)).timestamp()


def test_an_unknown_key_is_refused_in_the_same_words_as_a_wrong_signature() -> None:
    unknown, wrong = token(ED, "meter-7"), token(new_private_key(), "meter-7", kid=public(ED).thumbprint)
    with pytest.raises(Refusal) as refusal:
        VERIFY.claims(unknown, None, time.time(), None)
    assert refusal.value.detail == refused(wrong).detail


# -- public keys


@pytest.mark.parametrize("key", [ED, ES])
def test_a_key_is_the_same_as_pem_and_as_jwk(key: Private) -> None:
    made = public(key)
    algorithm = jwt.algorithms.get_default_algorithms()[made.algorithm]
    jwk = json.loads(algorithm.to_jwk(key.public_key()))
    assert public_key.read(made.pem) == public_key.read(jwk) == made
    assert len(made.thumbprint) == 43


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert public_key.read(jwk).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"  # its appendix A.3


RSA = rsa.generate_private_key(65537, 2048)
P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    "sent",
    [
        "", "a password", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", {}, {"kty": "OKP"},
        {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC", "crv": "P-256", "x": 1, "y": 2}, {"kty": ["OKP"]},
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        *(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
          for key in (RSA, P384)),
        private_pem(ED).decode(), {"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA"},
    ],
)  # fmt: skip
def test_what_is_no_public_key_for_tokens_is_refused(sent: Any) -> None:
    with pytest.raises(public_key.BadKey) as bad:
        public_key.read(sent)
    assert "AAAA" not in str(bad.value)


def test_a_private_key_is_refused_with_what_to_do() -> None:
    with pytest.raises(public_key.BadKey, match="private key: keep it"):
        public_key.read(private_pem(ES).decode())


# -- guesses


def test_guesses_are_limited_by_address_and_come_back_with_time() -> None:
    guesses = Guesses(Settings(authentication_failures_per_s_max=2))
    for _ in range(20):
        guesses.refuse_if_spent("10.0.0.1", 0.0)
        guesses.failed("10.0.0.1", 0.0)
    with pytest.raises(Refusal) as refusal:
        guesses.refuse_if_spent("10.0.0.1", 0.0)
    assert (refusal.value.problem.status, refusal.value.retry_after_s) == (429, 1)
    guesses.refuse_if_spent("10.0.0.2", 0.0)
    guesses.refuse_if_spent("10.0.0.1", 0.6)


def test_guesses_from_one_ipv6_network_are_one() -> None:
    guesses = Guesses(Settings(authentication_failures_per_s_max=1))
    for number in range(10):
        guesses.failed(f"2001:db8::{number:x}", 0.0)
    with pytest.raises(Refusal):
        guesses.refuse_if_spent("2001:db8::ffff", 0.0)
    guesses.refuse_if_spent("2001:db8:0:1::1", 0.0)
    for _ in range(10):
        guesses.failed("::ffff:10.0.0.1", 0.0)
    with pytest.raises(Refusal):
        guesses.refuse_if_spent("10.0.0.1", 0.0)


def test_guesses_take_bounded_memory() -> None:
    guesses = Guesses(SETTINGS)
    for number in range(ADDRESSES_MAX + 100):
        guesses.failed(str(number), 0.0)
    assert len(guesses) == ADDRESSES_MAX
