"""Token buckets in a fixed piece of memory that the workers of an edge share: no lock, nothing to clean up.

A bucket is the time at which all that it gave is paid for (the theoretical arrival time of GCRA): in the past, it is
full; so far ahead as a burst lasts, it is empty. That is one number for any rate, and time alone fills it.

The table is set-associative, as a processor's cache is. Of the eight slots in which a name may be, the one with the
least debt is given to a name that is new, *with its debt*. A full bucket has none, so giving it away loses nothing; and
where all eight are in debt, whoever comes finds at best what the least of them had left. So forgetting never makes a
fresh bucket: all names together get no more than the slots would.

Two workers that write a slot in the same microsecond lose one of the two amounts, and one that stands still between
reading and writing loses what the others wrote meanwhile: never more than a burst.
"""

import ctypes
import multiprocessing
from hashlib import blake2b
from time import monotonic

WAYS = 8
EVENTS, BYTES = 0, 1
UNITS = 2
_TAG_BYTES = 8
_NUMBER_BYTES = 8
SLOT_BYTES = _TAG_BYTES + UNITS * _NUMBER_BYTES
_KNOWN_MAX = 65_536  # names whose slot a worker remembers

Memory = bytearray | memoryview | ctypes.Array[ctypes.c_ubyte]


def memory_of(buckets_max: int) -> int:
    """Return how many bytes that many buckets take, rounded up to whole sets."""
    return -(-buckets_max // WAYS) * WAYS * SLOT_BYTES


def shared_memory(size: int) -> Memory:
    """Return memory that can be handed to a spawned process."""
    return multiprocessing.get_context("spawn").RawArray(ctypes.c_ubyte, size)


def tag_of(name: bytes) -> int:
    """Return the number by which every worker of every edge knows a name; never 0, which is nobody's."""
    return int.from_bytes(blake2b(name, digest_size=_TAG_BYTES).digest(), "little") or 1


class Buckets:
    """The buckets of one kind; each has two units, events and bytes.

    `paid_at[UNITS * slot + unit]` is by the monotonic clock, which all processes of a machine share.
    """

    def __init__(self, memory: Memory) -> None:
        view = memoryview(memory).cast("B")
        slots = len(view) // SLOT_BYTES
        self._tags = view[: slots * _TAG_BYTES].cast("Q")
        self.paid_at = view[slots * _TAG_BYTES : slots * SLOT_BYTES].cast("d")
        self._sets = slots // WAYS
        self._known: dict[bytes, tuple[int, int]] = {}

    def slot(self, name: bytes) -> int:
        """Return where the bucket of a name is, making room for it if need be."""
        known = self._known.get(name)
        if known is not None and self._tags[known[1]] == known[0]:
            return known[1]
        tag = tag_of(name)
        slot = self.slot_of_tag(tag)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[name] = tag, slot
        return slot

    def slot_of_tag(self, tag: int) -> int:
        """Return the same by the tag."""
        first = tag % self._sets * WAYS
        tags = self._tags[first : first + WAYS].tolist()
        if tag in tags:
            return first + tags.index(tag)
        debts = self.paid_at[UNITS * first : UNITS * (first + WAYS)].tolist()
        largest = list(map(max, debts[EVENTS::UNITS], debts[BYTES::UNITS]))
        way = largest.index(min(largest))
        self._tags[first + way] = tag
        return first + way

    def tag(self, slot: int) -> int:
        """Return whose bucket is there."""
        return self._tags[slot]

    def in_debt(self) -> int:
        """Return how many buckets are not full now."""
        now, paid_at = monotonic(), self.paid_at.tolist()
        return sum(max(pair) > now for pair in zip(paid_at[::UNITS], paid_at[1::UNITS], strict=True))
