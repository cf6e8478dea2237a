"""Verify the token of a device: a JWT (RFC 7519) signed by its fleet's key. No look-up, no I/O; about 100 µs.

Which algorithm holds is said by the registered key, never by the token: `alg: none`, or an HMAC with the public key as
its secret, verify against nothing (RFC 8725, 3.1). An unknown `kid` costs the same time as a known one.
"""

import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import InvalidTokenError, PyJWS
from jwt.utils import base64url_decode
from msgspec import Struct

from drm_ingest.edge.quota import Quota
from drm_ingest.edge.scope import Scope
from drm_ingest.errors import Refusal
from drm_ingest.event import PARTY_PREFIX, SUBJECT_CHARACTERS_MAX
from drm_ingest.public_key import ALGORITHMS, Verifying
from drm_ingest.settings import Settings

_FORGED = "The token is not signed by a fleet key in force; see its kid, alg and signature, or ask for a new one."


@dataclass(frozen=True, slots=True)
class FleetKey:
    """A public key in force, whose it is, and what its tokens may do."""

    id: UUID
    kid: str
    algorithm: str
    key: Verifying
    sender: str
    sender_id: str
    role: str
    scope: Scope | None
    expires_at: float
    quota: Quota | None = None
    """Of its sender."""


class Claims(Struct):
    """What a token says; more may be in it."""

    sub: str
    iat: float
    exp: float
    aud: str | list[str]
    nbf: float | None = None


class _Header(Struct):
    alg: str
    kid: str
    crit: msgspec.Raw | None = None


class Verify:
    """Checks tokens against fleet keys."""

    def __init__(self, settings: Settings) -> None:
        self._bytes_max = settings.token_bytes_max
        self._lifetime_max_s = settings.token_lifetime_max_s
        self.leeway_s = settings.token_leeway_s
        self._audience = settings.token_audience
        self._jws = PyJWS(algorithms=list(ALGORITHMS))
        self._header = msgspec.json.Decoder(_Header)
        self._claims = msgspec.json.Decoder(Claims)
        # What a token with an unknown kid is checked against, so that its 401 takes as long as any.
        self._decoys: dict[str, Verifying] = {
            "EdDSA": Ed25519PrivateKey.generate().public_key(),
            "ES256": generate_private_key(SECP256R1()).public_key(),
        }

    def kid(self, token: str) -> str:
        """Return which key signed a token, so it says.

        Raises:
            Refusal: unauthenticated; it cannot be a token.
        """
        return self._header_of(token).kid

    def claims(self, token: str, fleet_key: FleetKey | None, now: float, stated_at: float | None) -> Claims:
        """Return what a token says that this key signed and that holds now.

        `fleet_key` is None where none of that kid is in force. `now` is our clock and `stated_at` the sender's, if it
        states it with the request, in seconds since 1970.

        Raises:
            Refusal: unauthenticated, token_expired, clock_skew.
        """
        header = self._header_of(token)
        key = self._decoys[header.alg]
        if fleet_key is not None and fleet_key.algorithm == header.alg:
            key = fleet_key.key
        try:
            payload = self._jws.decode(token, key, algorithms=[header.alg])
        except (InvalidTokenError, ValueError):
            raise self.forged() from None
        try:
            claims = self._claims.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refusal("unauthenticated", "A token has the claims sub, aud, iat and exp, as in RFC 7519.") from None
        self._check(claims, now, stated_at)
        return claims

    def forged(self) -> Refusal:
        """Return a 401 that does not tell which part of it was wrong."""
        return Refusal("unauthenticated", _FORGED)

    def _header_of(self, token: str) -> _Header:
        if len(token) > self._bytes_max:
            raise Refusal("unauthenticated", f"A token has at most {self._bytes_max} bytes.", limit=self._bytes_max)
        try:
            header = self._header.decode(base64url_decode(token.partition(".")[0]))
        except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError):
            raise Refusal("unauthenticated", "A token has a header with alg and kid, as in RFC 7515.") from None
        if header.alg not in ALGORITHMS or header.crit is not None:
            raise Refusal("unauthenticated", "Sign tokens with EdDSA or ES256, without critical extensions.")
        return header

    def _check(self, claims: Claims, now: float, stated_at: float | None) -> None:
        if self._audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise Refusal("unauthenticated", f"The token is meant for somebody else; set its aud to {self._audience}.")
        if not 0 < len(claims.sub) <= SUBJECT_CHARACTERS_MAX or claims.sub.startswith(PARTY_PREFIX):
            detail = f"The sub of a token is a device's id of 1 to {SUBJECT_CHARACTERS_MAX} characters, and no party."
            raise Refusal("unauthenticated", detail)
        if "\0" in claims.sub:
            raise Refusal("unauthenticated", "The sub of a token has no NUL.")
        lifetime_s = claims.exp - claims.iat
        if not 0 < lifetime_s <= self._lifetime_max_s:
            most = f"{self._lifetime_max_s:g} s"
            raise Refusal("unauthenticated", f"A token lives for at most {most}: set exp at most {most} after iat.")
        if max(claims.iat, claims.nbf or claims.iat) > now + self.leeway_s:
            raise clock_skew("The token is not valid yet", now)
        if claims.exp <= now - self.leeway_s:
            if stated_at is not None and stated_at < claims.exp + self.leeway_s:
                raise clock_skew("The token has expired here, and by the time you state it has not", now)
            raise token_expired(now)


def token_expired(now: float) -> Refusal:
    """Return a 401 that tells the time: it may be the clock after all."""
    detail = "Ask for a new token; if this one is new, its maker's clock is slow: compare it with server_time."
    return Refusal("token_expired", detail, server_time=_time(now))


def clock_skew(what: str, now: float) -> Refusal:
    """Return a 401 that tells the time."""
    return Refusal("clock_skew", f"{what}: set your clock to server_time, and make a new one.", server_time=_time(now))


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
