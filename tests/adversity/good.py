"""Good clients, who send one event after the other while somebody else abuses the edge."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import quantiles

from tests.integration.edge import Edge, an_event

BETWEEN_S = 0.02
PATIENT = {"produce_deadline_s": 30, "produce_request_timeout_s": 20}
"""For an edge that somebody abuses: that Kafka is slow, on a busy machine, is not the abuser's doing."""


@dataclass
class Good:
    """What became of their requests; each has a connection of its own, and comes back if it is closed."""

    edge: Edge
    subjects: list[str] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def sending(self, clients: int = 4) -> AsyncIterator[None]:
        """Send while the context is open; every request that was begun is finished."""
        stop = asyncio.Event()
        running = [asyncio.create_task(self._send(stop)) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*running)

    async def _send(self, stop: asyncio.Event) -> None:
        async with self.edge.connect() as wire:
            while not stop.is_set():
                event = an_event()
                started = time.perf_counter()
                reply = await wire.post(event)
                self.seconds.append(time.perf_counter() - started)
                self.answers[reply.status] += 1
                if reply.status == 200:
                    self.subjects.append(event["subject"])
                await asyncio.sleep(BETWEEN_S)

    def p99_ms(self) -> float:
        """The time that 99 of 100 requests took at most."""
        return 1000 * quantiles(self.seconds, n=100)[98]


async def exact(edge: Edge, *good: Good) -> None:
    """Hold the ledger: what the good clients were told is true, and the edge's own counts add up.

    An event may stand in the ingress topic twice where Kafka was too slow to acknowledge a batch, and it was
    sent again; whoever reads on tells it by its identity.
    """
    subjects = [subject for each in good for subject in each.subjects]
    answers = sum((each.answers for each in good), Counter[int]())
    assert set(answers) == {200}, answers
    stored = Counter(await edge.stored(*subjects))
    missing = set(subjects) - stored.keys()
    assert not missing, f"acknowledged, and not in Kafka: {len(missing)} of {len(subjects)}, as {min(missing)}"
    failures = {name: value for name, value in (await edge.metrics()).items() if "produce_failures_total" in name}
    repeated = [subject for subject, times in stored.items() if times > 1]
    assert not repeated or any(failures.values()), f"{len(repeated)} in Kafka more than once, for no reason"
    received, accounted = await edge.ledger()
    assert received == accounted
