"""References: what other systems call a party, and the values that must never identify anyone.

A placeholder that two systems both have (`null`, `0`, `anonymous`, `test@…`) would make one party of all who lack a
value. Mail addresses and phone numbers are kept keyed: as plain hashes they could be guessed, and in the clear they
would be in every topic and log that names a party.
"""

import hmac
import re
import unicodedata

from drm_ingest.settings import Settings

KEYED = {"email": "email-hmac", "phone": "phone-hmac"}
"""Namespaces that are not kept in the clear, and those their keyed hashes are kept under."""

_PLACEHOLDERS = """
    null none nil nan void undefined unset notset missing empty blank unknown unspecified unassigned notavailable
    notapplicable default deleted removed redacted hidden true false objectobject
    anonymous anon guest visitor nobody noone someone user users username userid customer customerid client clientid
    member memberid contact contactid account accountid id uid uuid guid distinctid name email mail phone
    notauthenticated unauthenticated loggedout admin administrator root system
    test tester testing testuser testaccount testcustomer dummy sample example placeholder foo bar foobar xxx tbd todo
"""
_NOBODY = frozenset(_PLACEHOLDERS.split())
"""Without what is between and around their letters, so that `Test-User` and `[object Object]` are among them."""
_NOBODY_EXACTLY = frozenset({"-1", "-1.0", "n/a", "n.a.", "#n/a"})
_MAILBOXES = """
    test tests tester testing testuser example sample dummy fake noreply donotreply none null nobody nomail noemail
    unknown undefined anonymous anon guest
"""
_MAILBOXES_OF_NOBODY = frozenset(["", *_MAILBOXES.split()])

_between = re.compile(r"[\W_]+")
_zeros = re.compile(
    r"[{(\"']?("
    r"[+-]?0+([.,]0+)?|0x0+"
    r"|(?P<of_uuid>[0f])(?P=of_uuid){7}(-?(?P=of_uuid){4}){3}-?(?P=of_uuid){12}"  # the greatest is none either
    r"|00([:-]00){5}"  # of a network card
    r")[})\"']?"
)
_mail_address = re.compile(r"[^\s@]{1,64}@[^\s@]{1,255}")
_phone_number = re.compile(r"\+[1-9][0-9]{6,14}")  # E.164
_keyed_hash = re.compile(r"[0-9a-f]{64}")


class NotAReference(Exception):
    """Says what is wrong with a reference, and what to send."""


def key_of(settings: Settings) -> bytes | None:
    """Return the key of the keyed hashes, if there is one."""
    return None if settings.reference_hmac_key is None else settings.reference_hmac_key.get_secret_value().encode()


def kept(namespace: str, ref: str, key: bytes | None) -> tuple[str, str]:
    """Return the namespace and the value under which a reference is kept; `key` is that of the keyed hashes, if any.

    The hash is HMAC-SHA-256, in lower-case hex, of the address in lower case or of the number in E.164.

    Raises:
        NotAReference: it identifies nobody, or cannot be kept in the clear and there is no key.
    """
    if identifies_nobody(ref):
        raise NotAReference(f"{_shown(ref)} may stand for anybody and so identifies nobody; leave it out.")
    if namespace in KEYED.values():
        if not _keyed_hash.fullmatch(ref.lower()):
            raise NotAReference("Send the HMAC-SHA-256 in hex, 64 digits.")
        return namespace, ref.lower()
    if namespace not in KEYED:
        return namespace, ref
    if key is None:
        raise NotAReference(
            f"It is not kept in the clear: send its keyed hash as {KEYED[namespace]}, "
            "or have DRM_REFERENCE_HMAC_KEY set for serve, which then makes it."
        )
    plain = _mail(ref) if namespace == "email" else _phone(ref)
    return KEYED[namespace], hmac.digest(key, plain.encode(), "sha256").hex()


def identifies_nobody(ref: str) -> bool:
    """Whether a value may stand for anybody, however it is written."""
    folded = "".join(map(_folded, unicodedata.normalize("NFKC", ref).casefold())).strip()
    letters, words = _between.sub("", folded), [word for word in _between.split(folded) if word]
    if not letters or "".join(folded.split()) in _NOBODY_EXACTLY or _zeros.fullmatch(folded):
        return True
    # Of two values that were both missing, put together: `undefined undefined`.
    if letters in _NOBODY or ("@" not in folded and _NOBODY.issuperset(words)):
        return True
    mailbox, at, _ = folded.strip("\"'<> ").partition("@")
    return bool(at) and _between.sub("", mailbox.partition("+")[0]) in _MAILBOXES_OF_NOBODY


def _folded(character: str) -> str:
    """Return a decimal digit of any script as ours, and nothing of what cannot be seen."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return "" if unicodedata.category(character) == "Cf" else character


def _mail(ref: str) -> str:
    address = unicodedata.normalize("NFC", ref).strip().lower()
    if not _mail_address.fullmatch(address):
        raise NotAReference("This is no mail address.")
    return address


def _phone(ref: str) -> str:
    number = re.sub(r"[\s().\-/]", "", ref)
    number = "+" + number[2:] if number.startswith("00") else number
    if not _phone_number.fullmatch(number):
        raise NotAReference("Send a phone number with its country, as in +46701234567.")
    return number


def _shown(ref: str) -> str:
    return repr(ref if len(ref) <= 40 else ref[:40] + "…")
