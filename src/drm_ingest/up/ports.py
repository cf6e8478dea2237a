"""Free TCP ports on this machine."""

import random
import socket
from collections.abc import Collection

# Below what systems hand out for outgoing connections (32768 on Linux, 49152 elsewhere): a port chosen here is not
# taken by a passing client while its server restarts.
FIRST, LAST = 20_000, 32_000


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(taken: Collection[int] = ()) -> int:
    """Choose a free port at random, none of `taken`, so that several who choose at once rarely meet."""
    for _ in range(1000):
        port = random.randrange(FIRST, LAST)  # noqa: S311 - not a secret
        if port not in taken and is_free(port):
            return port
    raise OSError(f"no free port between {FIRST} and {LAST}")


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
