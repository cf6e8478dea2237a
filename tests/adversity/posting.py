"""Raw clients that post one event after another and note each answer, its time, and how long it took."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg
import httpx
from tests.adversity.running import Whole
from tests.integration.edge import Wire, an_event, request

PAUSE_S = 0.05  # of a client between an answer and its next request
SLACK_S = 1.0
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Post:
    """One request; the times are monotonic seconds."""

    subject: str
    sent_at: float
    answered_at: float
    status: int

    @property
    def took_s(self) -> float:
        return self.answered_at - self.sent_at


@dataclass
class Posts:
    """What was posted, in the order of the answers."""

    of_whole: Whole
    all: list[Post] = field(default_factory=list)
    pulse_s: float = 0.0
    """The slowest answer of `/health/live` meanwhile: Kafka plays no part in it, a busy machine does."""

    def check_in_time(self, deadline_s: float) -> None:
        """Hold that each was answered within the deadline and 1 s; a machine that is busy is forgiven what it costs.

        Three times: an event waits for its turn when it comes, when its time is up, and when its answer goes.
        """
        assert slowest_s(self.all) < deadline_s + SLACK_S + 3 * self.pulse_s, f"the pulse took {self.pulse_s:.2f} s"

    def answered(self, since: float, until: float) -> list[Post]:
        """Return those that were answered in that time, whenever they were sent."""
        return [post for post in self.all if since < post.answered_at < until]

    async def acknowledged(self, since: float, within_s: float) -> Post:
        """Wait for the first 200 to a request that is answered after `since`."""
        while True:
            found = [post for post in self.all if post.answered_at > since and post.status == 200]
            if found:
                return found[0]
            assert time.monotonic() - since < within_s, f"no 200 for {within_s} s: {statuses(self.all[-50:])}"
            await asyncio.sleep(0.05)

    async def stored(self, posts: Sequence[Post]) -> Counter[str]:
        """Return which of their subjects are stored, and how often."""
        connection = await asyncpg.connect(self.of_whole.where["postgres_dsn"])
        try:
            subjects = [post.subject for post in posts]
            found = await connection.fetch("select subject from event where subject = any($1)", subjects, timeout=60)
        finally:
            await connection.close()
        return Counter(subject for (subject,) in found)

    async def check_stored(self) -> None:
        """Hold that each acknowledged event is stored once, and none twice; call it when the path is quiet."""
        stored = await self.stored(self.all)
        acknowledged = {post.subject for post in self.all if post.status == 200}
        assert not acknowledged - stored.keys(), "acknowledged, and not stored"
        assert not [subject for subject, times in stored.items() if times > 1], "stored more than once"


def statuses(posts: Iterable[Post]) -> Counter[int]:
    """Return how many answers there are of each status; 0 stands for none."""
    return Counter(post.status for post in posts)


def slowest_s(posts: Iterable[Post]) -> float:
    return max((post.took_s for post in posts), default=0.0)


@contextlib.asynccontextmanager
async def posting(whole: Whole, clients: int = 16, subject: Callable[[], str] | None = None) -> AsyncIterator[Posts]:
    """Post from that many connections while the context is open; each waits for its answer before it goes on."""
    posts, stop = Posts(whole), asyncio.Event()
    url = urlsplit(whole.where["edge_url"])

    async def client() -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        wire = Wire(reader, writer)
        try:
            while not stop.is_set():
                event = an_event() | ({} if subject is None else {"subject": subject()})
                sent_at, status = time.monotonic(), NO_ANSWER
                try:
                    await wire.send(request(event, key=whole.where["sender_key"]))
                    status = (await asyncio.wait_for(wire.reply(), 60)).status
                finally:
                    posts.all.append(Post(event["subject"], sent_at, time.monotonic(), status))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), PAUSE_S)
        finally:
            writer.close()

    async def pulse() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            while not stop.is_set():
                began = time.monotonic()
                await http.get(whole.where["edge_url"] + "/health/live")
                posts.pulse_s = max(posts.pulse_s, time.monotonic() - began)
                await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pulse())
        for _ in range(clients):
            tasks.create_task(client())
        try:
            yield posts
        finally:
            stop.set()
