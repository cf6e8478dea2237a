"""Make a device's token: what whoever keeps the private key of a fleet does, and `drm-ingest token` to try it out."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from drm_ingest import public_key

_WANTED = "is no private key for tokens: one is made with `openssl genpkey -algorithm ed25519`, without a password"


class NoPrivateKey(ValueError):
    """What was given cannot sign tokens; the message does not repeat it."""


def make(private_key: Path, device: str, *, kid: str | None, audience: str, lifetime: timedelta) -> str:
    """Return a token for a device, signed with the key in a PEM file; without `kid` the key goes by its thumbprint.

    Raises:
        NoPrivateKey: the file holds none that will do.
        OSError: it cannot be read.
    """
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            raise NoPrivateKey(f"{private_key} {_WANTED}")
        public = public_key.of(key.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise NoPrivateKey(f"{private_key} {_WANTED}") from None
    now = datetime.now(UTC)
    claims = {"sub": device, "aud": audience, "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, key, algorithm=public.algorithm, headers={"kid": kid or public.thumbprint})
