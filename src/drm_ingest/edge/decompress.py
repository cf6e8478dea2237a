"""Decompress a body, counting while it grows: a bomb costs at most the limit, whatever it claims to hold.

It goes in slices, so that other connections are served between them.
"""

import sys
import zlib
from collections.abc import Callable, Generator

from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP = 31  # zlib's window of 32 KiB, with the header and the checksum of gzip
_ZSTD: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: 23
}  # 8 MiB, the most that RFC 9659 lets a sender ask for
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
COMPRESSED = (_GZIP_MAGIC, _ZSTD_MAGIC)
"""How a compressed body begins, and JSON never does."""
_CHUNK_BYTES = 16 * 1024  # what follows the end of a member is copied back, so it must stay small
_PART_BYTES = 1024 * 1024  # of the output at a time; 16 KiB of zeros alone make 16 MiB of gzip, and any size of zstd
_SLICE_COST = 4 * 1024 * 1024  # bytes of output: some 10 ms
_MEMBER_COST = 8 * 1024  # what beginning one costs, in bytes of output


def decompress(content_encoding: bytes, body: bytes, settings: Settings) -> bytes:
    """Return the body itself, in one go; what it raises is told at `decompressing`."""
    slices = decompressing(content_encoding, body, settings)
    try:
        while True:
            next(slices)
    except StopIteration as done:
        return bytes(done.value)


def decompressing(content_encoding: bytes, body: bytes, settings: Settings) -> Generator[None, None, bytes]:
    """Return the body itself; yield after each slice of the work, of some 10 ms.

    Raises:
        Refusal: unsupported_encoding, malformed_encoding, decompressed_too_large.
    """
    encodings = [
        name for part in content_encoding.lower().split(b",") if (name := part.strip()) not in {b"", b"identity"}
    ]
    if not encodings:
        return body
    if len(encodings) > 1 or encodings[0] not in _MEMBERS:
        raise Refusal("unsupported_encoding", "Compress once, with gzip or zstd, or not at all.")
    output = _Output(settings.request_decompressed_bytes_max)
    rest = memoryview(body)
    read_member = _MEMBERS[encodings[0]]
    try:
        for _ in range(settings.request_compressed_members_max):
            if not rest:
                return output.whole()
            rest = yield from read_member(rest, output)
            if output.slice_is_over(_MEMBER_COST):
                yield
    except (zlib.error, zstd.ZstdError) as error:
        raise Refusal("malformed_encoding", f"The body is not {encodings[0].decode()}: {error}.") from None
    most = settings.request_compressed_members_max
    raise Refusal("malformed_encoding", f"Compress at most {most} parts into one body.", limit=most)


def too_large_decompressed(most: int) -> Refusal:
    """Return a 413 that names the limit."""
    return Refusal("decompressed_too_large", f"Send at most {most} bytes before compression; split it.", limit=most)


def undeclared(body: bytes) -> Refusal:
    """Return a 400 for a body that is compressed and does not say so."""
    name = "gzip" if body.startswith(_GZIP_MAGIC) else "zstd"
    return Refusal("malformed_encoding", f"The body is compressed; set Content-Encoding: {name}.")


class _Output:
    """What has been decompressed so far."""

    def __init__(self, bytes_max: int) -> None:
        self._parts: list[bytes] = []
        self._bytes_max = self._left = bytes_max
        self._slice_cost = 0
        self.more_may_come = False
        """The last part ended where it had to, so there may be more of the same chunk."""

    def grow(self, decompress_: Callable[[bytes | memoryview, int], bytes], chunk: bytes | memoryview) -> bool:
        """Add the next part of what a chunk decompresses to; return whether the slice is over.

        Raises:
            Refusal: decompressed_too_large, one byte beyond the limit.
        """
        most = min(self._left + 1, _PART_BYTES)
        part = decompress_(chunk, most)
        self.more_may_come = len(part) == most
        self._left -= len(part)
        if self._left < 0:
            raise too_large_decompressed(self._bytes_max)
        if part:
            self._parts.append(part)
        return self.slice_is_over(len(part))

    def slice_is_over(self, cost: int) -> bool:
        """Count work; return whether it is time to let others work."""
        self._slice_cost += cost
        if self._slice_cost < _SLICE_COST:
            return False
        self._slice_cost = 0
        return True

    def whole(self) -> bytes:
        """Return all of it, and let go of it."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _gzip_member(rest: memoryview, output: _Output) -> Generator[None, None, memoryview]:
    """Decompress one member; return what follows it."""
    stream = zlib.decompressobj(_GZIP)
    while not stream.eof:
        chunk = rest[:0] if output.more_may_come and not rest else _next_chunk(rest)
        if output.grow(stream.decompress, chunk):
            yield
        left = stream.unused_data if stream.eof else stream.unconsumed_tail  # at the end both may be the same bytes
        rest = rest[len(chunk) - len(left) :]
    return rest


def _zstd_frame(rest: memoryview, output: _Output) -> Generator[None, None, memoryview]:
    """Decompress one frame; return what follows it."""
    stream = zstd.ZstdDecompressor(options=_ZSTD)
    fed = 0
    while not stream.eof:
        chunk = _next_chunk(rest[fed:]) if stream.needs_input else b""
        fed += len(chunk)
        if output.grow(stream.decompress, chunk):
            yield
    return rest[fed - len(stream.unused_data) :]


def _next_chunk(rest: memoryview) -> memoryview:
    if not rest:
        raise Refusal("malformed_encoding", "The body ends before its compressed data does; send it whole.")
    return rest[:_CHUNK_BYTES]


_MEMBERS = {b"gzip": _gzip_member, b"x-gzip": _gzip_member, b"zstd": _zstd_frame}
