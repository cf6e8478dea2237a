"""The public key of a fleet, as PEM or JWK: what may sign tokens, how it is named, and nothing of the private half."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt import InvalidKeyError, PyJWK, PyJWTError
from jwt.utils import to_base64url_uint

Verifying = Ed25519PublicKey | EllipticCurvePublicKey

ALGORITHMS = ("EdDSA", "ES256")
"""What tokens are signed with: Ed25519 (RFC 8037), or ECDSA with P-256 and SHA-256 (RFC 7518)."""
_COORDINATE_BYTES = 32  # of P-256
_WANTED = "Send an Ed25519 or P-256 public key, as PEM (BEGIN PUBLIC KEY) or as a JWK."


class BadKey(ValueError):
    """It is no public key that tokens can be checked with; the message says what to send."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, and how it is known."""

    algorithm: str
    """Of `ALGORITHMS`; it follows from the key, never from a token."""
    thumbprint: str
    """RFC 7638, SHA-256; the `kid` of its tokens where no other name was given."""
    pem: str


def read(key: str | Mapping[str, object]) -> PublicKey:
    """Return what a person sent, PEM text or a JWK.

    Raises:
        BadKey: it is something else; what was sent is not repeated.
    """
    if (isinstance(key, str) and "PRIVATE KEY" in key) or (isinstance(key, Mapping) and "d" in key):
        raise BadKey("That is a private key: keep it, take it for compromised, and send the public half of a new one.")
    try:
        public = load(key) if isinstance(key, str) else PyJWK.from_dict(dict(key)).key
    except (ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm, PyJWTError, InvalidKeyError):
        raise BadKey(_WANTED) from None
    return of(public)


def load(pem: str) -> Verifying:
    """Return the key in a PEM text to check signatures with; raises ValueError or TypeError."""
    key = load_pem_public_key(pem.encode())
    if not isinstance(key, Verifying):
        raise BadKey(_WANTED)
    return key


def of(key: object) -> PublicKey:
    """Return how a public key is known.

    Raises:
        BadKey: it is of another kind.
    """
    if isinstance(key, Ed25519PublicKey):
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        algorithm, members = "EdDSA", {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        numbers = key.public_numbers()
        x, y = (
            to_base64url_uint(number, bit_length=8 * _COORDINATE_BYTES).decode() for number in (numbers.x, numbers.y)
        )
        algorithm, members = "ES256", {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    else:
        raise BadKey(_WANTED)
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return PublicKey(algorithm, _base64url(hashlib.sha256(canonical).digest()), pem)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
