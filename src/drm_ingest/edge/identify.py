"""Identify who sends, where their credential is not remembered: refuse it with the reason, or verify their token."""

from dataclasses import replace
from time import monotonic, time
from typing import Literal, cast

from drm_ingest.edge.credentials import Credential, Credentials, secret_in
from drm_ingest.edge.token import FleetKey, Verify
from drm_ingest.errors import Refusal
from drm_ingest.guesses import Guesses
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

HOW_TO_SEND_A_KEY = "Authorization: Bearer <key or token>, or Basic with it as user name"
_UNKNOWN = f"The key is unknown, revoked or expired, or not sent as {HOW_TO_SEND_A_KEY}."
_ENDED = "The key or token was revoked, or expired, before the request had arrived; nothing of it was kept."
_TOKEN_PARTS = 3


class Identify:
    """One a process; what it finds out, `credentials` remembers."""

    def __init__(self, settings: Settings, credentials: Credentials, metrics: Metrics) -> None:
        self.credentials = credentials
        self._guesses = Guesses(settings)
        self._verify = Verify(settings)
        self._retry_after_s = settings.retry_after_s
        self._verifications = {result: metrics.token_verifications.labels(result) for result in ("valid", "refused")}

    def identify(self, authorization: bytes | None, stated_at: float | None, address: str | None) -> Credential:
        """Return whose header that is.

        `address` is where it comes from, `stated_at` the time by the sender's own clock, in seconds since 1970.

        Raises:
            Refusal: unauthenticated, token_expired, clock_skew, not_ready, rate_limited.
        """
        found = self.credentials.find(authorization)
        if found is not None:
            return found
        if authorization is None:
            raise self._unsent()
        now = monotonic()
        if self.credentials.ready:
            self._guesses.refuse_if_spent(address, now)
        try:
            return self._verified(authorization, stated_at)
        except Refusal as refusal:
            if refusal.problem.code == "unauthenticated":  # the others were told to somebody whose token was signed
                self._guesses.failed(address, now)
            raise

    def still(self, authorization: bytes) -> Credential:
        """Return the same of somebody who was identified before, for whom no guess is counted.

        Raises:
            Refusal: unauthenticated, token_expired, clock_skew, not_ready.
        """
        return self.credentials.find(authorization) or self._verified(authorization, None)

    def refuse_if_ended(self, credential: Credential) -> None:
        """Refuse what arrived, or waited, for so long that its credential is not in force any more.

        Raises:
            Refusal: unauthenticated.
        """
        if not self.credentials.in_force(credential):
            raise Refusal("unauthenticated", _ENDED)

    def not_ready(self) -> Refusal:
        """Return a 503 for a credential that cannot be judged yet: a 401 would make a sender give up."""
        detail = "Credentials are not loaded yet, or were read too long ago to know this one."
        return Refusal("not_ready", detail, retry_after_s=self._retry_after_s)

    def _unsent(self) -> Refusal:
        if not self.credentials.ready:
            return self.not_ready()
        return nothing_sent()

    def _verified(self, authorization: bytes, stated_at: float | None) -> Credential:
        secret = secret_in(authorization) or ""
        if secret.count(".") != _TOKEN_PARTS - 1:
            if secret and self.credentials.stale and not self.credentials.was_known(secret):
                raise self.not_ready()
            raise Refusal("unauthenticated", _UNKNOWN)
        kid = self._verify.kid(secret)
        fleet_key = self.credentials.fleet_key(kid)
        if fleet_key is None and self.credentials.stale and not self.credentials.was_known(kid):
            raise self.not_ready()
        try:
            claims = self._verify.claims(secret, fleet_key, time(), stated_at)
            if fleet_key is None:
                raise self._verify.forged()  # and nobody has the private half of a decoy
        except Refusal:
            self._verifications["refused"].inc()
            raise
        self._verifications["valid"].inc()
        expires_at = min(claims.exp + self._verify.leeway_s, fleet_key.expires_at)
        credential = _of(fleet_key, claims.sub, expires_at)
        self.credentials.remember(secret, credential, fleet_key)
        return credential


def nothing_sent() -> Refusal:
    """Return a 401 that says how to send a key."""
    return Refusal("unauthenticated", f"Send your key: {HOW_TO_SEND_A_KEY}.")


def _of(fleet_key: FleetKey, device: str, expires_at: float) -> Credential:
    role = cast("Literal['sender', 'reader', 'admin']", fleet_key.role)
    scope = fleet_key.scope
    if scope is not None and scope.devices is not None:
        if not scope.devices.match(device):
            detail = f"The fleet's key {fleet_key.kid} may not sign for {device}: its scope (devices) does not list it."
            raise Refusal("forbidden", detail, missing_scopes=["devices"])
        scope = replace(scope, devices=None)
    return Credential(
        str(fleet_key.id), fleet_key.sender, role, device, scope, fleet_key.sender_id, expires_at, fleet_key.quota
    )
