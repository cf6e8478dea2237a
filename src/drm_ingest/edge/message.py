"""The messages of a WebSocket as a client sends them, and why a connection is closed for one."""

import re
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from drm_ingest.event import ID_CHARACTERS_MAX

CLOUDEVENTS = "cloudevents.json"
SEQ_MAX = 2**53 - 1  # what JSON numbers hold everywhere
CLOSE_REASON_BYTES_MAX = 123  # RFC 6455, 5.5
CUT = "…"
UNSUPPORTED, NOT_JSON, POLICY, RESTARTING, TRY_LATER = 1003, 1007, 1008, 1012, 1013


class Closing(Exception):
    """The connection ends, with a code (RFC 6455, 7.4.1, and its registry) and a reason for the sender."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = _short(reason)


def _short(reason: str) -> str:
    """Cut it to what a close can carry, visibly."""
    if len(told := reason.encode()) <= CLOSE_REASON_BYTES_MAX:
        return reason
    return told[: CLOSE_REASON_BYTES_MAX - len(CUT.encode())].decode(errors="ignore") + CUT


class Hello(Struct):
    key: str | None = None
    sent_at: str | None = None


class Message(Struct):
    """What a client sends; `hello` only first."""

    hello: Hello | None = None
    seq: int | None = None
    events: list[Raw] | None = None


class Single(Struct):
    """An event sent alone, known by its id; or the hello before it."""

    hello: Hello | None = None
    id: object = None
    """Whatever is there: the event is judged, not the message."""

    @property
    def name(self) -> str | None:
        """The id, if it can be one."""
        return self.id if isinstance(self.id, str) and len(self.id) <= ID_CHARACTERS_MAX else None


_MESSAGE = msgspec.json.Decoder(Message)
_SINGLE = msgspec.json.Decoder(Single)
_Sent = TypeVar("_Sent", Message, Single)
_HELLO = 'hello is {"key": text, "sent_at": text}, both optional'
_PLACES = {
    "seq": "seq must be a whole number from 0 to 2^53-1",
    "events": "events must be an array of events",
    "hello": _HELLO,
}
_place = re.compile(r" - at `\$\.(\w+)").search
_byte = re.compile(r"\(byte (\d+)\)$").search

# What is in order, as far as it goes, two backslashes being told from the begin of an escape; or, in the group, half a
# surrogate pair.
_escapes = re.compile(
    rb"(?:[^\\]|\\(?:[^u]|u(?![dD][89a-fA-F]))|\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2})++"
    rb"|\\u([dD][89a-fA-F][\da-fA-F]{2})"
)


def message_of(raw: bytes) -> Message:
    """Return what a client says that numbers its messages.

    Raises:
        Closing: it is none.
    """
    message = _decode(_MESSAGE, raw, 'send {"seq": a number, "events": [...]}')
    if message.hello is None:
        if message.seq is None:
            raise Closing(UNSUPPORTED, 'seq is missing: send {"seq": a number, "events": [...]}')
        if message.events is None:
            raise Closing(UNSUPPORTED, 'events is missing: send {"seq": a number, "events": [...]}')
        if not 0 <= message.seq <= SEQ_MAX:
            raise Closing(UNSUPPORTED, _PLACES["seq"])
    return message


def single_of(raw: bytes) -> Single:
    """Return the same of one that sends events alone, or a hello.

    Raises:
        Closing: it is none.
    """
    return _decode(_SINGLE, raw, "send one event a message, as a JSON object")


def _decode(decoder: msgspec.json.Decoder[_Sent], raw: bytes, what_to_send: str) -> _Sent:
    try:
        try:
            return decoder.decode(raw)
        except msgspec.DecodeError:
            # A lone surrogate is the fault of one event, not of the message: with a NUL for it, the event is refused.
            spoilt = _escapes.sub(lambda escape: rb"\u0000" if escape[1] else escape[0], raw)
            if spoilt == raw:
                raise
            return decoder.decode(spoilt)
    except msgspec.ValidationError as error:
        place = _place(str(error))
        raise Closing(UNSUPPORTED, _PLACES.get(place[1], what_to_send) if place else what_to_send) from None
    except RecursionError:
        raise Closing(NOT_JSON, "the message is nested too deeply to be read") from None
    except UnicodeDecodeError:
        raise Closing(NOT_JSON, "the message is not UTF-8") from None
    except msgspec.DecodeError as error:
        byte = _byte(str(error))
        where = f"at byte {byte[1]}" if byte else "it ends too early"
        raise Closing(NOT_JSON, f"the message is not JSON: {where}") from None
