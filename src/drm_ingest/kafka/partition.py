"""Kafka's default partitioner, as in the Java client, so that joins on the key hold for everyone."""

from struct import unpack_from

REMEMBERED_KEYS_MAX = 200_000  # of at most some hundred bytes each; a key takes 3 µs to hash and 0.1 µs to look up

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Return the 31-bit hash whose remainder is the partition.

    MurmurHash2, 32 bits, seed 0x9747b28c, the sign bit cleared: `toPositive(murmur2(key))` in Kafka's clients.
    """
    length = len(key)
    words = length // 4
    h = (0x9747B28C ^ length) & _MASK
    for word in unpack_from(f"<{words}I", key):
        k = word * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    tail = key[words * 4 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return (h ^ h >> 15) & 0x7FFFFFFF


class Partitions(dict[bytes, int]):
    """The partition of each key, by looking it up: `partitions[key]`; computed when it is not there.

    A dict and not `lru_cache`, which at each hit links the key before all others: memory that is in no cache of the
    processor, where a dict and the small numbers in it touch a third of that. When there are too many, it forgets all.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, key: bytes) -> int:
        if len(self) >= REMEMBERED_KEYS_MAX:
            self.clear()
        partition = self[key] = murmur2(key) % self._count
        return partition
