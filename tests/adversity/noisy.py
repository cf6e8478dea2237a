"""A device that sends as fast as it is answered, whatever the answers: `python -m tests.adversity.noisy PORT KEY S`.

A process of its own, so that what it costs to send is not measured as the time that others wait. Prints its answers.
"""

import json
import socket
import sys
import time
from collections import Counter

from tests.integration.edge import an_event, request

AT_ONCE = 16  # requests on their way; as many as the edge reads before it answers
SUBJECT = "noisy"


def main(port: int, key: str, seconds: float, per_s: float) -> None:
    """Send for so long, at most so many requests a second."""
    answers: Counter[str] = Counter()
    started = time.monotonic()
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        read = connection.makefile("rb")
        while (now := time.monotonic() - started) < seconds:
            if sent > now * per_s:
                time.sleep(0.001)
                continue
            connection.sendall(b"".join(request(an_event(subject=SUBJECT), key=key) for _ in range(AT_ONCE)))
            sent += AT_ONCE
            for _ in range(AT_ONCE):
                answers[read.readline().split()[1].decode()] += 1
                length = 0
                while (line := read.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                read.read(length)
    print(json.dumps({"answers": answers, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
