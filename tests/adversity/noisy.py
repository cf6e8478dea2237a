"""A device that sends far more than it may, whatever the answers: `python -m tests.adversity.noisy PORT KEY S PER_S N`.

A process of its own, so that what it costs to send is not measured as the time that others wait. Prints its answers.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter

from tests.integration.edge import an_event, request

AT_ONCE = 16  # requests on their way on a connection; as many as the edge reads before it answers
SUBJECT = "noisy"


async def main(port: int, key: str, seconds: float, per_s: float, connections: int) -> None:
    """Send for so long, as many a second as are due and the edge reads; on each connection all it takes."""
    answers: Counter[str] = Counter()
    started = time.monotonic()
    begun = 0

    async def one() -> None:
        nonlocal begun
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        on_their_way = asyncio.Semaphore(AT_ONCE)

        async def send() -> None:
            nonlocal begun
            while (now := time.monotonic() - started) < seconds:
                if begun > now * per_s:
                    await asyncio.sleep(0.001)
                    continue
                await on_their_way.acquire()
                begun += 1
                writer.write(request(an_event(subject=SUBJECT), key=key))

        sending = asyncio.create_task(send())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds):
                    while True:
                        head = await reader.readuntil(b"\r\n\r\n")
                        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                        answers[head.split()[1].decode()] += 1
                        on_their_way.release()
        finally:
            sending.cancel()
            writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    print(json.dumps({"answers": answers, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
