"""Compressed bodies that are not what they seem: refused in a second, in little memory, while others are served."""

import asyncio
import gzip
import struct
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache

import pytest
from tests.adversity.abuse import STATUS, Holds, at_the_door, at_the_route, post, sentinel_behind, watched
from tests.adversity.bad_input import an_event
from tests.integration.edge import Wire

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MiB = 1024 * 1024
CAP_BYTES = 32 * MiB  # what a body may be decompressed, by default
ATTEMPTS = 3  # the best counts: on a busy machine a time is also that of others
WITHIN_S, STALL_S = 1.0, 0.1
AT_ONCE = 8
FRAME = 1 << 5 | 3 << 6  # a single segment, with eight bytes for its size


@cache
def gzip_zeros(mebibytes: int) -> bytes:
    """Return a member of so many MiB, by repeating the block of one."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = compressor.compress(b"\0" * MiB) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(b"\0" * MiB) + compressor.flush(zlib.Z_FULL_FLUSH)
    return start + block * (mebibytes - 1) + compressor.flush()


@cache
def zstd_zeros(mebibytes: int) -> bytes:
    compressor = zstd.ZstdCompressor(level=1)
    return b"".join([*(compressor.compress(b"\0" * MiB) for _ in range(mebibytes)), compressor.flush()])


def good(subject: str, size: int = 0) -> bytes:
    return b"[%b%b]" % (an_event(subject), b" " * size)


def many(event: bytes) -> bytes:
    return b"[%b]" % b",".join([event] * 10_000)


def with_isize(body: bytes, size: int) -> bytes:
    return gzip.compress(body)[:-4] + struct.pack("<I", size)


def claiming(body: bytes, size: int) -> bytes:
    """Return a zstd frame whose head claims another size than its one raw block has."""
    block = struct.pack("<I", len(body) << 3 | 1)[:3]
    return b"\x28\xb5\x2f\xfd" + bytes([FRAME]) + struct.pack("<Q", size) + block + body


def wide(body: bytes) -> bytes:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(body) + compressor.compress(b" " * MiB) + compressor.flush()


BOMBS: dict[str, tuple[str, str, Callable[[str], bytes]]] = {
    "1 GiB of zeros, gzip": ("gzip", "decompressed_too_large", lambda _: gzip_zeros(1024)),
    "1 GiB of zeros, zstd": ("zstd", "decompressed_too_large", lambda _: zstd_zeros(1024)),
    "gzip in gzip": ("gzip", "malformed_json", lambda _: gzip.compress(gzip_zeros(1024))),
    "gzip in gzip, and says so": ("gzip, gzip", "unsupported_encoding", lambda _: gzip.compress(gzip_zeros(1024))),
    "10,000 members of 4 KB": ("gzip", "decompressed_too_large", lambda _: gzip.compress(b" " * 4000) * 10_000),
    "8 MB of empty members": ("gzip", "malformed_encoding", lambda _: gzip.compress(b"") * 400_000),
    "8 MB of empty frames": ("zstd", "malformed_encoding", lambda _: zstd.compress(b"") * 900_000),
    "8 MB of frames to skip": ("zstd", "malformed_encoding", lambda _: b"\x50\x2a\x4d\x18\0\0\0\0" * 1_000_000),
    "a gzip bomb that claims to hold 2 bytes": (
        "gzip", "decompressed_too_large", lambda _: with_isize(b"\0" * 64 * MiB, 2)
    ),
    "gzip that claims to hold nothing": ("gzip", "malformed_encoding", lambda subject: with_isize(good(subject), 0)),
    "gzip that claims to hold 4 GiB": (
        "gzip", "malformed_encoding", lambda subject: with_isize(good(subject), 2**32 - 1)
    ),
    "zstd that claims to hold 2 bytes": ("zstd", "malformed_encoding", lambda subject: claiming(good(subject), 2)),
    "zstd that claims to hold 16 EiB": (
        "zstd", "malformed_encoding", lambda subject: claiming(good(subject), 2**64 - 3)
    ),
    "zstd that claims to hold 30 MiB": (
        "zstd", "malformed_encoding", lambda subject: claiming(good(subject), 30 * MiB)
    ),
    "zstd with a window of 128 MiB": ("zstd", "malformed_encoding", lambda subject: wide(good(subject))),
    "gzip cut in the middle": ("gzip", "malformed_encoding", lambda subject: gzip.compress(good(subject, 9999))[:-20]),
    "zstd cut in the middle": ("zstd", "malformed_encoding", lambda subject: zstd.compress(good(subject, 9999))[:-5]),
    "a gzip bomb cut in the middle": ("gzip", "malformed_encoding", lambda _: gzip_zeros(30)[:-30]),
    "blanks up to the cap": ("gzip", "malformed_json", lambda _: gzip.compress(b" " * CAP_BYTES)),
    "10,000 wrong events up to the cap": (
        "zstd", "all_rejected", lambda _: zstd.compress(many(b'{"type":"%b"}' % (b"x" * 3300)))
    ),
}  # fmt: skip


@pytest.mark.row("bombs")
@pytest.mark.parametrize("reach", [at_the_door, at_the_route])
async def test_a_bomb_is_refused_within_a_second_in_twice_the_cap_and_holds_nobody_up(
    holds: Holds,
    subject: str,
    reach: Callable[[str], AbstractAsyncContextManager[Wire]],
    seen: Callable[[str], None],
) -> None:
    where = holds.path.where
    most: list[tuple[float, float, float]] = []
    for kind, (encoding, code, make) in BOMBS.items():
        bomb = make(subject)
        tried: list[tuple[float, float, float]] = []
        while len(tried) < ATTEMPTS:
            with watched(holds.pids["edge"], where["edge_url"]) as cost:
                async with reach(where["edge_url"]) as wire:
                    started = time.monotonic()
                    reply = await post(wire, where["sender_key"], bomb, {"content-encoding": encoding})
                    seconds = time.monotonic() - started
            seconds -= cost.waited_s
            assert (reply.status, reply.json()["code"]) == (STATUS[code], code), kind
            grown_bytes = cost.grown_bytes - len(bomb) - 2 * len(reply.body)  # the answer, and what it is made of
            tried.append((seconds, cost.stall_s, grown_bytes))
            if seconds < WITHIN_S and cost.stall_s < STALL_S and grown_bytes < 2 * CAP_BYTES:
                break
        seconds, stall_s, grown_bytes = (min(column) for column in zip(*tried, strict=True))
        assert seconds < WITHIN_S, kind
        assert stall_s < STALL_S, kind
        assert grown_bytes < 2 * CAP_BYTES, kind
        most.append((seconds, stall_s, grown_bytes))
    async with reach(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(b"", subject), {})).status == 200
    await holds.check(subject)
    seconds, stall_s, grown_bytes = (max(column) for column in zip(*most, strict=True))
    seen(
        f"{len(BOMBS)} bombs {reach.__name__.replace('_', ' ')}: the worst refused in {seconds:.2f} s, "
        f"memory +{grown_bytes / MiB:.0f} MiB, the loop busy for {1000 * stall_s:.0f} ms"
    )


@pytest.mark.row("bombs")
async def test_bombs_at_once_are_opened_one_after_the_other(
    holds: Holds, subject: str, seen: Callable[[str], None]
) -> None:
    where, pid = holds.path.where, holds.pids["edge"]

    async def throw(number: int) -> None:
        encoding, bomb = [("gzip", gzip_zeros(1024)), ("zstd", zstd_zeros(1024))][number % 2]
        async with at_the_door(where["edge_url"]) as wire:
            reply = await post(wire, where["sender_key"], bomb, {"content-encoding": encoding})
            assert (reply.status, reply.json()["code"]) == (413, "decompressed_too_large")

    with watched(pid, where["edge_url"]) as cost:
        await asyncio.gather(*(throw(number) for number in range(AT_ONCE)))
    assert cost.grown_bytes < 2 * CAP_BYTES + AT_ONCE * 2 * MiB  # and the bombs as they came
    assert cost.stall_s < STALL_S
    seen(
        f"{AT_ONCE} bombs of 1 GiB at once: memory +{cost.grown_bytes / MiB:.0f} MiB, "
        f"{1000 * cost.cpu_s / AT_ONCE:.0f} ms of CPU each, "
        f"the loop busy for {1000 * cost.stall_s:.0f} ms at most"
    )
    async with at_the_door(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(b"", subject), {})).status == 200
    await holds.check(subject)
