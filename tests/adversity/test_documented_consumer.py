"""The consumer in docs/events.md, copied into a file and run, sees each event once."""

import asyncio
import re
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import httpx
from aiokafka import AIOKafkaConsumer
from tests.adversity.running import Running

PAGE = Path(__file__).parents[2] / "docs/events.md"


async def test_the_consumer_of_the_page_prints_an_event_once_however_often_it_is_sent(path: Running) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    where, subject = path.where, f"reader-{uuid.uuid4().hex[:8]}"
    code = code.replace("127.0.0.1:9092", where["kafka_bootstrap"]).replace("my-team", subject)
    await _have_read_all(where["kafka_bootstrap"], subject)
    consumer = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {where['sender_key']}"}) as client:
            for number in (1, 1, 2):  # a repeat, and behind it the sentinel
                event = {
                    "type": "device.measurement",
                    "id": str(number),
                    "subject": subject,
                    "time": datetime(2026, 11, 22, 10, number, tzinfo=UTC).isoformat(),
                    "data": {"temperature": number},
                }
                answer = await client.post(f"{where['edge_url']}/v1/events", json=[event])
                assert answer.json()["accepted"] == 1
        assert consumer.stdout is not None
        seen: list[str] = []
        async with asyncio.timeout(60):
            while len(seen) < 2:
                line = (await consumer.stdout.readline()).decode()
                assert line, "the consumer ended"
                if subject in line:
                    seen.append(line)
        assert [f"{{'temperature': {number}}}" in line for number, line in enumerate(seen, 1)] == [True, True]
    finally:
        consumer.kill()
        await consumer.wait()


async def _have_read_all(bootstrap: str, group: str) -> None:
    """Leave the events of other tests behind the group."""
    async with AIOKafkaConsumer(
        "drm.events.measurement", bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False
    ) as consumer:
        await consumer.seek_to_end()
        await consumer.commit({partition: await consumer.position(partition) for partition in consumer.assignment()})
