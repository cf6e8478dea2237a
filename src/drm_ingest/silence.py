"""A connection whose other end has fallen silent is closed by the kernel, whatever the libraries above it wait for.

A network that swallows packets tells nobody, nor does a firewall that forgets an idle connection. Without this a
request waits for its own time-out, which is as long as a statement may take, and what is sent again after the network
healed comes late: TCP doubles its pauses.
"""

import contextlib
import socket
from typing import Any

PROBES = 3


def end_silence(transport: Any, silent_max_s: float) -> None:
    """Close an asyncio transport once the kernel of the other end has acknowledged nothing of ours for that long.

    What is being sent counts (RFC 5482), and while nothing is, the kernel asks (keepalive). Where the system does not
    know one of the two, the other has to do; sockets that are not TCP are left alone.
    """
    own: socket.socket | None = transport.get_extra_info("socket")
    if own is None or own.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    interval_s = max(1, round(silent_max_s / (PROBES + 1)))
    with contextlib.suppress(OSError, ValueError):  # it has ended already: uvloop's socket has no descriptor then
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", interval_s),
            ("TCP_KEEPINTVL", interval_s),
            ("TCP_KEEPCNT", PROBES),
            ("TCP_USER_TIMEOUT", round(silent_max_s * 1000)),
        ):
            if (number := getattr(socket, option, None)) is not None:
                own.setsockopt(socket.IPPROTO_TCP, number, value)
