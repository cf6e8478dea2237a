"""What happened, a day at a time: rows as attach packs them, and the day counts it would have made of them.

A day is drawn from the seed and its number alone, so days can be made side by side and in any order. One device in
twenty sends nearly half of everything, every other day; the others wake up now and then.
"""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from aiokafka import ConsumerRecord
from msgspec import Raw

from drm_ingest.event import content_hash, identity_key
from drm_ingest.postgres.store import days
from drm_ingest.postgres.store.rows import Packer, Row
from loadtests.scale.world import BULK_EVENTS, World, device

MEASUREMENT, STATUS, APP = "device.measurement", "device.status", "app.interaction"
FAULT, RATING, CONTACT, PURCHASE = "device.fault", "feedback.rating", "support.contact", "commerce.purchase"
A_DAY = 4  # events of a device on a day on which it is awake
CHATTY = 20  # one device in so many
CHATTY_SHARE = 0.45
FAULT_SHARE, CONTACT_SHARE, RATING_SHARE, PURCHASE_SHARE = 0.008, 0.003, 0.005, 0.003
_SOURCELESS = ""
_NO_RECORD = ConsumerRecord("", 0, 0, 0, 0, None, None, None, 0, 0, ())

Happening = tuple[str, int, str, bytes]
"""Subject, microseconds since the day began, type, data."""

_DAY_US = 86_400_000_000


def of_day(world: World, number: int) -> list[Happening]:
    """Draw a day; `number` counts from the first."""
    sizes = world.sizes
    draw = random.Random(sizes.seed << 20 | number)
    whole = sizes.events // sizes.days
    happened: list[Happening] = []
    a_bulk_day = BULK_EVENTS // sizes.days
    for bulk in range(sizes.bulk):
        happened += _ordinary(draw, device(bulk), a_bulk_day)
    happened += _faults(world, number, whole)
    happened += _said(world, draw, whole)
    left = whole - len(happened)
    chatty = int(left * CHATTY_SHARE) // A_DAY
    for index in draw.sample(range(sizes.devices // CHATTY), min(chatty, sizes.devices // CHATTY)):
        happened += _ordinary(draw, device(index * CHATTY), A_DAY)
    others = (whole - len(happened)) // A_DAY
    for index in draw.sample(range(sizes.devices), min(others, sizes.devices)):
        happened += _ordinary(draw, device(index), A_DAY)
    happened.sort(key=lambda one: one[1])
    return happened


def _ordinary(draw: random.Random, subject: str, count: int) -> Iterator[Happening]:
    at, step = draw.randrange(_DAY_US // 2), _DAY_US // 2 // count
    for place in range(count):
        at += draw.randrange(1, step)
        luck = draw.random()
        if luck < 0.86:
            data = (
                b'{"temperature":%.2f,"humidity":%d,"pressure":1013.2,"battery":%d,"rssi":-67,'
                b'"units":{"battery":"%%","rssi":"dBm"}}' % (15 + 10 * luck, place * 7 % 100, draw.randrange(101))
            )
            yield subject, at, MEASUREMENT, data
        elif luck < 0.96:
            yield subject, at, STATUS, b'{"state":"online","battery":%d,"firmware":"1.4.2"}' % draw.randrange(101)
        else:
            yield subject, at, APP, b'{"action":"open","screen":"home","session":"%08x"}' % draw.getrandbits(32)


def _faults(world: World, number: int, whole: int) -> Iterator[Happening]:
    """Yield what broke on the day, and what broke the day before and was mended: four of five."""
    sizes = world.sizes
    for day, cleared in ((number, False), (number - 1, True)):
        draw = random.Random(sizes.seed << 21 | day + 1)
        for index in draw.sample(range(sizes.devices), min(sizes.devices, int(whole * FAULT_SHARE / 1.8))):
            code, mended, at = b"E%02d" % draw.randrange(12), draw.random() < 0.8, draw.randrange(_DAY_US)
            if not cleared:
                yield device(index), at, FAULT, b'{"code":"%b","severity":"error","message":"Pump blocked"}' % code
            elif mended:
                yield device(index), at, FAULT, b'{"code":"%b","severity":"error","state":"cleared"}' % code


def _said(world: World, draw: random.Random, whole: int) -> Iterator[Happening]:
    """Yield what customers and technicians said and did."""
    customers = world.parties["customer"]
    for _ in range(int(whole * RATING_SHARE)):
        on_device = draw.random() < 0.5
        subject = device(draw.randrange(world.sizes.devices)) if on_device else f"party:{draw.choice(customers)}"
        scale, score = draw.choice(((b"csat", draw.randint(1, 5)), (b"nps", draw.randint(0, 10))))
        yield subject, draw.randrange(_DAY_US), RATING, b'{"scale":"%b","score":%d}' % (scale, score)
    for _ in range(int(whole * CONTACT_SHARE)):
        at = draw.randrange(_DAY_US)
        if draw.random() < 0.4 and world.serviced:
            number, partner, _since = draw.choice(world.serviced)
            data = b'{"channel":"visit","direction":"outbound","agent":"%b"}' % str(partner).encode()
            yield device(number), at, CONTACT, data
        else:
            data = b'{"channel":"phone","topic":"installation/wifi","duration":412,"outcome":"resolved"}'
            yield f"party:crm:{_reference(world, draw)}", at, CONTACT, data
    for _ in range(int(whole * PURCHASE_SHARE)):
        data = b'{"order":"A-%d","currency":"EUR","total_minor":%d}' % (draw.getrandbits(31), draw.randrange(100_000))
        yield f"party:crm:{_reference(world, draw)}", draw.randrange(_DAY_US), PURCHASE, data


def _reference(world: World, draw: random.Random) -> str:
    return str(draw.choice(world.parties["customer"]).int & 0xFFFFFFFFFFFF)


def rows(world: World, number: int) -> tuple[list[Row], list[bytes]]:
    """Return the rows of a day in the order in which they happened, and its day counts."""
    packer, began = Packer(), world.until - timedelta(days=world.sizes.days - number)
    packed = [
        _row(packer, began, f"{number:03d}-{place:07d}", *happening)
        for place, happening in enumerate(of_day(world, number))
    ]
    return packed, days.fold(packed)


def _row(packer: Packer, began: datetime, id_: str, subject: str, us: int, type_: str, data: bytes) -> Row:
    at = began + timedelta(microseconds=us // 1000 * 1000)
    time = at.isoformat(timespec="milliseconds")[:23] + "Z"
    source = "erp" if subject.startswith("party:") else _SOURCELESS
    return packer.pack(
        _NO_RECORD, identity_key(subject, source, id_), content_hash(type_, time, data), at,
        at + timedelta(milliseconds=300), subject, source, id_, type_, time, "sent", f"{us:012d}", "fleet", "1.0",
        Raw(data),
    )  # fmt: skip
