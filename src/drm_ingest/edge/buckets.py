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
EVENTS, BYTES = 1, 2
"""Where the two numbers of a slot are; its tag is at 0. So close together, they come in one line of the cache."""
SLOT = 3
_NUMBER_BYTES = 8
SLOT_BYTES = SLOT * _NUMBER_BYTES
_KNOWN_MAX = 65_536  # names whose slot a worker remembers

Known = tuple[int, int]
"""A name's tag and where its slot was; it is there as long as that tag is."""
Memory = bytearray | memoryview | ctypes.Array[ctypes.c_ubyte]


def memory_of(buckets_max: int) -> int:
    """Return how many bytes that many buckets take, rounded up to whole sets."""
    return -(-buckets_max // WAYS) * WAYS * SLOT_BYTES


def shared_memory(size: int) -> Memory:
    """Return memory that can be handed to a spawned process."""
    return multiprocessing.get_context("spawn").RawArray(ctypes.c_ubyte, size)


def tag_of(name: bytes) -> int:
    """Return the number by which every worker of every edge knows a name; never 0, which is nobody's."""
    return int.from_bytes(blake2b(name, digest_size=_NUMBER_BYTES).digest(), "little") or 1


class Buckets:
    """The buckets of one kind; each has two units, events and bytes.

    `at` is where the slot of a name begins: `tags[at]` tells whose it is, `paid_at[at + EVENTS]` and `[at + BYTES]` the
    times by the monotonic clock, which all processes of a machine share. Both are views of the same memory: to read or
    write one number there takes 0.02 µs, to unpack the three of a slot in one go 0.06.
    """

    def __init__(self, memory: Memory) -> None:
        view = memoryview(memory).cast("B")
        slots = len(view) // SLOT_BYTES
        self.tags = view[: slots * SLOT_BYTES].cast("Q")
        self.paid_at = view[: slots * SLOT_BYTES].cast("d")
        # The same from the first of each on, so that `events_paid_at[at]` needs no addition.
        self.events_paid_at, self.bytes_paid_at = self.paid_at[EVENTS:], self.paid_at[BYTES:]
        self._sets = slots // WAYS
        self._known: dict[bytes, dict[bytes, Known]] = {}
        self._known_count = 0

    def known(self, owner: bytes) -> dict[bytes, Known]:
        """Return where the names of an owner were found, for whoever cannot afford to call `at` for each of them.

        By owner first: no name is put together only to look it up, and the subject of an event is the same object here
        and where the writer remembers its partition. What is not in the processor's caches is most of the cost.
        """
        found = self._known.get(owner)
        if found is None:
            found = self._known[owner] = {}
        return found

    def at(self, owner: bytes, name: bytes) -> int:
        """Return where the bucket of an owner's name is, making room for it if need be."""
        found = self.known(owner).get(name)
        if found is not None and self.tags[found[1]] == found[0]:
            return found[1]
        return self.find(owner, name)

    def find(self, owner: bytes, name: bytes) -> int:
        """Return the same of a name that is not remembered, or not any more: its slot was given away."""
        if self._known_count >= _KNOWN_MAX:
            for names in self._known.values():
                names.clear()
            self._known_count = 0
        tag = tag_of(owner + name)
        at = self.at_tag(tag)
        self.known(owner)[name] = tag, at
        self._known_count += 1
        return at

    def at_tag(self, tag: int) -> int:
        """Return the same by the tag."""
        first = tag % self._sets * WAYS * SLOT
        end = first + WAYS * SLOT
        tags = self.tags[first:end:SLOT].tolist()
        if tag in tags:
            return first + SLOT * tags.index(tag)
        debts = map(max, self.paid_at[first + EVENTS : end : SLOT], self.paid_at[first + BYTES : end : SLOT])
        largest = list(debts)
        at = first + SLOT * largest.index(min(largest))
        self.tags[at] = tag
        return at

    def in_debt(self) -> int:
        """Return how many buckets are not full now."""
        now, paid_at = monotonic(), self.paid_at.tolist()
        return sum(max(pair) > now for pair in zip(paid_at[EVENTS::SLOT], paid_at[BYTES::SLOT], strict=True))
