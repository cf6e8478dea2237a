"""Compressed bodies: in parts, truncated, of a wrong kind, and far larger than they look."""

import contextlib
import gzip
import itertools
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from drm_ingest.edge.decompress import decompress, decompressing
from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MiB = 1024 * 1024
SETTINGS = Settings(
    request_body_bytes_max=MiB, request_decompressed_bytes_max=2 * MiB, request_compressed_members_max=100
)
ONCE = pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
BOTH = pytest.mark.parametrize(
    ("encoding", "compress"), [(b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"zstd", zstd.compress)]
)
Compress = Callable[[bytes], bytes]


def code(encoding: bytes, body: bytes) -> str:
    with pytest.raises(Refusal) as refused:
        decompress(encoding, body, SETTINGS)
    return refused.value.problem.code


@BOTH
def test_a_body_comes_out_as_it_went_in(encoding: bytes, compress: Compress) -> None:
    for body in (b"", b"x", bytes(range(256)) * 4000, b"a" * 2 * MiB):
        assert decompress(encoding, compress(body), SETTINGS) == body
        assert decompress(b" %b " % encoding.upper(), compress(body), SETTINGS) == body


@BOTH
def test_several_members_follow_each_other(encoding: bytes, compress: Compress) -> None:
    parts = [b"one", b"", bytes(range(256)) * 200, b"four"]
    assert decompress(encoding, b"".join(map(compress, parts)), SETTINGS) == b"".join(parts)
    assert decompress(encoding, compress(b"ab") * 99, SETTINGS) == b"ab" * 99
    assert code(encoding, compress(b"") * 101) == "malformed_encoding"


@BOTH
def test_a_truncated_body_is_refused_wherever_it_ends(encoding: bytes, compress: Compress) -> None:
    whole = compress(b"first") + compress(b"some text, some more text")
    ends = len(compress(b"first"))
    for length in range(1, len(whole)):
        if length != ends:
            assert code(encoding, whole[:length]) == "malformed_encoding", length


@BOTH
def test_what_is_not_compressed_so_is_refused(encoding: bytes, compress: Compress) -> None:
    for body in (
        b"[]",
        b"\0" * 40,
        compress(b"[]") + b"trailing",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        zlib.compress(b"[]"),
    ):
        assert code(encoding, body) == "malformed_encoding"


def test_a_checksum_that_does_not_fit_is_refused() -> None:
    spoilt = bytearray(gzip.compress(b"[]"))
    spoilt[-8] ^= 0xFF
    assert code(b"gzip", bytes(spoilt)) == "malformed_encoding"


@BOTH
@pytest.mark.parametrize("size", [MiB - 1, MiB, MiB + 1, 2 * MiB])
def test_what_ends_where_a_part_of_it_ends_is_whole(encoding: bytes, compress: Compress, size: int) -> None:
    for body in (b"\0" * size, bytes(range(256)) * (size // 256)):
        assert decompress(encoding, compress(body), SETTINGS) == body
        rest = 2 * MiB - len(body)
        assert decompress(encoding, compress(body) + compress(b"x" * rest), SETTINGS) == body + b"x" * rest


@ONCE
def test_the_work_is_cut_in_slices_that_are_short(encoding: bytes, compress: Compress) -> None:
    settings = Settings()
    most = settings.request_decompressed_bytes_max
    bodies = {
        "one large member": compress(b" " * most),
        "members of nothing": compress(b"") * settings.request_compressed_members_max,
        "a bomb": compress(b"\0" * 2 * most),
    }
    for name, body in bodies.items():
        slices, times = decompressing(encoding, body, settings), [time.process_time()]
        with contextlib.suppress(StopIteration, Refusal):
            while True:
                next(slices)
                times.append(time.process_time())
        assert len(times) >= 8, name
        assert max(later - before for before, later in itertools.pairwise(times)) < 0.1, name


@ONCE
def test_a_bomb_costs_no_more_than_the_limit(encoding: bytes, compress: Compress) -> None:
    for bomb in (compress(b"\0" * 16 * MiB), compress(b"\0" * MiB) * 90, compress(b"\0" * 2 * MiB) + compress(b"\0")):
        tracemalloc.start()
        try:
            assert code(encoding, bomb) == "decompressed_too_large"
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 3 * SETTINGS.request_decompressed_bytes_max  # the last part is there twice while it grows


def test_a_window_larger_than_http_allows_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(b"a" * MiB, zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()
    assert code(b"zstd", body) == "malformed_encoding"


def test_no_encoding_is_none() -> None:
    for encoding in (b"", b"identity", b" Identity ,"):
        assert decompress(encoding, b"[]", SETTINGS) == b"[]"


def test_other_encodings_and_nested_ones_are_refused() -> None:
    for encoding in (b"br", b"deflate", b"gzip, gzip", b"zstd,gzip", b"\xff", b"gzip;q=1"):
        assert code(encoding, gzip.compress(b"[]")) == "unsupported_encoding"
