"""The partitioner agrees with the Java client's, or joins on the key break for everyone downstream."""

import pytest

from drm_ingest.kafka.partition import murmur2

# From Apache Kafka's own test of its murmur2 (org.apache.kafka.common.utils.UtilsTest), signed 32-bit integers.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", JAVA)
def test_a_key_hashes_as_in_the_java_client(key: bytes) -> None:
    assert murmur2(key) == JAVA[key] & 0x7FFFFFFF


def test_it_agrees_with_the_client_we_use_for_every_length_and_byte() -> None:
    from aiokafka.partitioner import murmur2 as other

    for length in range(40):
        key = bytes((length * 37 + position * 101) % 256 for position in range(length))
        assert murmur2(key) == other(key) & 0x7FFFFFFF
