"""Fleets' keys and the tokens they sign, good and bad, for tests."""

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from drm_ingest import public_key
from drm_ingest.public_key import PublicKey

Private = Ed25519PrivateKey | EllipticCurvePrivateKey


def new_private_key(algorithm: str = "EdDSA") -> Private:
    return Ed25519PrivateKey.generate() if algorithm == "EdDSA" else generate_private_key(SECP256R1())


def public(key: Private) -> PublicKey:
    return public_key.of(key.public_key())


def private_pem(key: Private) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def claims(device: str, *, age_s: float = 0, lifetime_s: float = 600, **more: Any) -> dict[str, Any]:
    """What a token says; None leaves a claim out."""
    issued_at = time.time() - age_s
    said = {"sub": device, "aud": "drm-ingest", "iat": issued_at, "exp": issued_at + lifetime_s} | more
    return {name: value for name, value in said.items() if value is not None}


def token(key: Private, device: str, *, kid: str | None = None, **more: Any) -> str:
    made = public(key)
    return jwt.encode(claims(device, **more), key, algorithm=made.algorithm, headers={"kid": kid or made.thumbprint})


def segment(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def raw_token(header: object, said: object, signature: bytes) -> str:
    return f"{segment(header)}.{segment(said)}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
