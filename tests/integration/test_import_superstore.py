"""The Superstore orders by the real path: customers, vendors by region, purchases; every count is that of the file.

The file is read a second time by pandas, which knows nothing of our reading or mappings. Two of its customers then own
the devices of the demo's recordings, and hand them over to each other in the middle.
"""

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pandas as pd
import pytest
from tests.adversity.parts import KEY, Parts
from tests.conftest import database_on, drop_topics, make_environment, make_settings, run_aside

from drm_ingest.device.demo import RIDE_STARTED_AT, stories
from drm_ingest.device.send import Sender, Sent
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres

pytestmark = pytest.mark.timeout(600)  # 10,000 purchases and 57,000 readings, each one sent and attached

MAPPINGS = Path(__file__).parents[2] / "docs" / "superstore"
ADMIN_KEY = "drm_the-key-of-the-office"
PURCHASE, READING = "commerce.purchase", "device.measurement"
SUPERSTORE = {"customers.toml": "parties", "vendors.toml": "parties", "buys-from.toml": "relationships",
              "purchases.toml": "events"}  # fmt: skip
FORETOLD = ("customers.toml", "purchases.toml")  # by a dry run before
ARRIVED_S = 120
DEVICES = ("cgm-4411", "bike-0802")


def sample(name: str) -> Path:
    spec = importlib.util.find_spec("bokeh_sampledata")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "_data" / name


@pytest.fixture(scope="module")
def orders() -> pd.DataFrame:
    """The file as pandas reads it, with the names that the mappings give its customers, and the line of each row."""
    orders = pd.read_csv(sample("SampleSuperstore.csv.gz"), dtype=str, keep_default_na=False)
    buyer = orders["Segment"] + "/" + orders["City"] + "/" + orders["State"] + "/" + orders["Postal Code"]
    cents = [int((Decimal(sales) * 100).quantize(Decimal(1))) for sales in orders["Sales"]]
    ids = [f"superstore-{line}" for line in range(2, len(orders) + 2)]  # the header is line 1
    return orders.assign(buyer=buyer, cents=cents, id=ids)


class Store:
    """The whole path, and what is imported into it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.parts = Parts(settings, folder, ("edge", "enrich", "attach", "serve"))
        self.folder = folder
        self.environment = make_environment(settings) | {"DRM_EDGE_URL": self.parts.url("edge"), "DRM_SENDER_KEY": KEY}
        self.foretold: dict[str, str] = {}
        self.told: dict[str, str] = {}

    @property
    def dsn(self) -> str:
        return self.parts.settings.postgres_dsn.get_secret_value()

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "drm_ingest", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    def import_superstore(self, mapping: str, *options: str) -> str:
        file = self.folder / "SampleSuperstore.csv.gz"
        if not file.exists():
            file.symlink_to(sample(file.name))
        return self.run("import", SUPERSTORE[mapping], str(file), "--mapping", str(MAPPINGS / mapping), *options)

    def import_lines(self, what: str, lines: Sequence[dict[str, Any]]) -> str:
        file = self.folder / f"{what}.ndjson"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.run("import", what, str(file))

    async def arrived(self, events: int, **of: str) -> None:
        """Wait until that many events are attached; a moment of them later is none."""
        where = " and ".join(f"{column} = '{value}'" for column, value in of.items())
        db = await asyncpg.connect(self.dsn)
        try:
            async with asyncio.timeout(ARRIVED_S):
                while (count := await db.fetchval(f"select count(*) from event where {where}")) < events:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            await db.close()
        assert count == events

    async def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row that an import could make or change, as it stands."""
        tables = ("party", "party_ref", "party_attribute", "relationship", "relationship_change", "relationship_move",
                  "device", "event_identity", "event", "subject_day")  # fmt: skip
        db = await asyncpg.connect(self.dsn)
        try:
            return {
                table: [tuple(row) for row in await db.fetch(f"select t::text from {table} t order by 1")]
                for table in tables
            }
        finally:
            await db.close()


@pytest.fixture(scope="module")
def store(kafka: Kafka, migrated: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with database_on(migrated) as dsn:
        # As it is anywhere else: the rest of make_settings is for tests that wait for a bound.
        settings = make_settings(kafka, dsn).model_copy(
            update={"postgres_statement_timeout_s": 60.0, "postgres_acquire_timeout_s": 30.0,
                    "reader_session_timeout_s": 30.0, "produce_deadline_s": 30.0}
        )  # fmt: skip
        store = Store(settings, tmp_path_factory.mktemp("superstore"))

        async def office() -> None:
            db = await asyncpg.connect(dsn)
            await ensure_key(db, "office", "admin", ADMIN_KEY)
            await db.close()

        run_aside(office())
        try:
            store.parts.start()
            for mapping in SUPERSTORE:
                if mapping in FORETOLD:
                    store.foretold[mapping] = store.import_superstore(mapping, "--dry-run")
                store.told[mapping] = store.import_superstore(mapping)
            run_aside(store.arrived(9994, type=PURCHASE))
            yield store
        finally:
            store.parts.end()
            run_aside(drop_topics(settings.kafka_bootstrap, settings.topic_prefix))


@pytest.fixture
async def serve(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    limits = httpx.Limits(max_connections=4)
    async with httpx.AsyncClient(
        base_url=store.parts.url("serve"), headers=headers, timeout=60, limits=limits
    ) as client:
        yield client


async def read(serve: httpx.AsyncClient, path: str, **query: Any) -> Any:
    return (await serve.get(path, params=query)).raise_for_status().json()


async def pages(serve: httpx.AsyncClient, path: str, **query: Any) -> list[Any]:
    """All items of a list, page by page."""
    items: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await read(serve, path, **query, **cursor)
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


async def record(serve: httpx.AsyncClient, buyer: str) -> Any:
    return await read(serve, f"/v1/parties/superstore:{buyer}")


async def test_customers_vendors_and_who_buys_from_whom_are_those_of_the_file(
    store: Store, serve: httpx.AsyncClient, orders: pd.DataFrame
) -> None:
    buyers, regions = orders["buyer"].nunique(), orders["Region"].nunique()
    pairs = orders.drop_duplicates(["buyer", "Region"])

    def told(made: int) -> str:
        return f"made {made:,} · changed 0 · the same {len(orders) - made:,} · refused 0"

    assert told(buyers) in store.told["customers.toml"]
    assert told(regions) in store.told["vendors.toml"]
    assert told(len(pairs)) in store.told["buys-from.toml"]
    assert f"accepted {len(orders):,} · refused 0" in store.told["purchases.toml"]
    for mapping, foretold in store.foretold.items():
        (counts,) = [line for line in store.told[mapping].splitlines() if " · refused " in line]
        assert f"{counts} (nothing was changed: a dry run)" in foretold
    customers = await pages(serve, "/v1/parties", kind="customer", limit=500)
    first = orders.drop_duplicates("buyer")
    name = first["Segment"] + ", " + first["City"] + " " + first["Postal Code"]
    assert {(party["refs"]["superstore"][0], party["name"]) for party in customers} == set(
        zip(first["buyer"], name, strict=True)
    )
    assert len(customers) == buyers
    ids = {party["id"]: party["refs"]["superstore"][0] for party in customers}
    for region, of_region in pairs.groupby("Region"):
        vendor = await read(serve, f"/v1/parties/superstore-region:{region}", devices=0, relations=0, days=0)
        assert (vendor["kind"], vendor["name"]) == ("vendor", region)
        assert vendor["sales"]["customers_reached"] == vendor["sales"]["customers_now"] == len(of_region)
        assert vendor["relations"]["now"] == len(of_region)
        relations = await pages(
            serve, "/v1/relationships", party=f"superstore-region:{region}", role="buys_from", limit=500
        )
        assert len(relations) == len(of_region)
        assert {ids[relation["subject"].removeprefix("party:")] for relation in relations} == set(of_region["buyer"])


async def test_every_customer_has_as_many_purchases_as_lines(serve: httpx.AsyncClient, orders: pd.DataFrame) -> None:
    lines = orders.groupby("buyer").size()
    shown = 0

    async def compare(buyer: str, count: int) -> None:
        nonlocal shown
        found = await record(serve, buyer)
        assert found["events_by_type"] == {PURCHASE: count}, buyer
        assert [(day["day"], day["events_by_type"]) for day in found["by_day"]] == [("2017-12-31", {PURCHASE: count})]
        shown += found["events"]

    for first in range(0, len(lines), 100):
        await asyncio.gather(*(compare(str(buyer), int(n)) for buyer, n in lines.iloc[first : first + 100].items()))
    assert shown == len(orders)


async def test_every_purchase_as_it_is_exported_is_its_line_and_the_sums_agree(
    store: Store, orders: pd.DataFrame
) -> None:
    folder = store.folder / "exported"
    store.run("export", str(folder), "--only", "events", "--until", "2018-01-01")
    exported = pd.read_parquet(folder / "events", filters=[("type", "==", PURCHASE)])
    assert len(exported) == len(orders)
    data = pd.json_normalize([json.loads(text) for text in exported["data"]])
    line = pd.json_normalize([lines[0] for lines in data["lines"]])
    found = pd.DataFrame(
        {"id": exported["id"], "subject": exported["subject"], "order": data["order"], "cents": data["total_minor"],
         "sku": line["sku"], "quantity": line["quantity"]}
    ).sort_values("id", ignore_index=True)  # fmt: skip
    told = pd.DataFrame(
        {"id": orders["id"], "subject": "party:superstore:" + orders["buyer"],
         "order": orders["Ship Mode"] + "/" + orders["Category"] + "/" + orders["Sub-Category"],
         "cents": orders["cents"], "sku": orders["Sub-Category"], "quantity": orders["Quantity"].astype(int)}
    ).sort_values("id", ignore_index=True)  # fmt: skip
    pd.testing.assert_frame_equal(found, told, check_dtype=False)
    # Once more by another way: dollars, as pandas reads them, of each region and segment.
    region = orders.set_index("id")["Region"]
    by_region = found["cents"].groupby(found["id"].map(region).values).sum() / 100
    dollars = orders["Sales"].astype(float).groupby(orders["Region"]).sum()
    half_a_cent = orders.groupby("Region").size() * 0.005
    assert ((by_region - dollars).abs() <= half_a_cent).all()


async def test_timelines_have_every_purchase_of_their_customer_once(
    serve: httpx.AsyncClient, orders: pd.DataFrame
) -> None:
    lines = orders.groupby("buyer").size().sort_values(kind="stable")
    for buyer in [*lines.index[-4:], *lines.index[:3], lines.index[len(lines) // 2]]:
        items = await pages(serve, f"/v1/parties/superstore:{buyer}/timeline", type=PURCHASE, limit=17)
        found = Counter((item["event"]["id"], item["event"]["data"]["total_minor"], *item["roles"]) for item in items)
        of_buyer = orders[orders["buyer"] == buyer]
        assert found == Counter(
            (id_, cents, "self") for id_, cents in zip(of_buyer["id"], of_buyer["cents"], strict=True)
        )


async def test_the_same_files_again_change_nothing(store: Store, orders: pd.DataFrame) -> None:
    before = await store.everything()
    assert len(before["event_identity"]) >= len(orders)
    for mapping in ("customers.toml", "vendors.toml", "buys-from.toml"):
        told = await asyncio.to_thread(store.import_superstore, mapping)
        assert f"made 0 · changed 0 · the same {len(orders):,} · refused 0" in told
    told = await asyncio.to_thread(store.import_superstore, "purchases.toml")
    assert f"accepted {len(orders):,} · refused 0" in told  # durable, as they were
    await seen_again(store, len(orders))
    assert await store.everything() == before


async def seen_again(store: Store, duplicates: int) -> None:
    """Wait until attach or enrich has told of so many events that they were there already."""
    async with asyncio.timeout(ARRIVED_S):
        while True:
            samples = await store.parts.samples()
            found = sum(
                value
                for process in ("enrich", "attach")
                for name, value in samples[process].items()
                if name.startswith("drm_events_total") and 'outcome="duplicate"' in name
            )
            if found >= duplicates:
                return
            await asyncio.sleep(0.2)


async def test_two_customers_hand_their_devices_over_and_each_has_its_own_part_of_the_recordings(
    store: Store, serve: httpx.AsyncClient, orders: pd.DataFrame
) -> None:
    times = {
        "cgm-4411": pd.to_datetime(pd.read_csv(sample("CGM.csv.gz"))["datetime"], utc=True),
        "bike-0802": RIDE_STARTED_AT + pd.to_timedelta(pd.read_csv(sample("cycling.csv.gz"))["time"]),
    }
    ada, ben = orders.groupby("buyer").size().nlargest(2).index  # New York and Los Angeles
    owners = {"cgm-4411": (ada, ben), "bike-0802": (ben, ada)}
    region = orders.drop_duplicates("buyer").set_index("buyer")["Region"]
    vendors = await reach(serve, orders)

    store.import_lines("devices", [{"subject": device, "model": "of a recording"} for device in DEVICES])
    relations = [
        {"subject": device, "role": "owner", "party": f"superstore:{first}", "reason": "sold"}
        for device, (first, _) in owners.items()
    ]
    relations += [
        {"subject": device, "role": "sold_by", "party": f"superstore-region:{region[first]}"}
        for device, (first, _) in owners.items()
    ]
    assert f"made {len(relations)} " in store.import_lines("relationships", relations)
    with Sender(store.parts.url("edge"), KEY) as sender:
        for story in stories():
            readings = [(line, event) for line, event in story.events() if event["type"] == READING]
            sent = Sent()
            for _ in sender.send(readings, sent):
                await asyncio.sleep(0)
            assert (len(readings), not sent.rejected) == (len(times[story.device]), True)
    await store.arrived(sum(map(len, times.values())), type=READING)

    async def split(at: dict[str, pd.Timestamp]) -> None:
        """Each of the two has what was recorded while it was theirs, of each device, and nothing else."""
        for buyer in (ada, ben):
            expected = {
                device: int(
                    (times[device] < at[device]).sum() if buyer == first else (times[device] >= at[device]).sum()
                )
                for device, (first, _) in owners.items()
            }
            found = await record(serve, buyer)
            assert found["events_by_type"][READING] == sum(expected.values())
            assert found["events_by_type"][PURCHASE] == (orders["buyer"] == buyer).sum()
            for device, (first, _) in owners.items():
                around = times[device][
                    (times[device] - at[device]).abs() < timedelta(minutes=2 if device == "bike-0802" else 600)
                ]
                mine = around[around < at[device]] if buyer == first else around[around >= at[device]]
                items = await pages(
                    serve, f"/v1/parties/superstore:{buyer}/timeline", type=READING, limit=100,
                    since=around.min().isoformat(), until=(around.max() + timedelta(seconds=1)).isoformat(),
                )  # fmt: skip
                found_times = sorted(pd.Timestamp(item["occurred_at"]) for item in items if item["device"] == device)
                assert found_times == sorted(mine), (buyer, device)
                assert len(mine) > 50

    # In the middle, at the very time of a reading: it is the next owner's.
    at = {device: times[device].sort_values().iloc[len(times[device]) // 2] for device in DEVICES}
    for device, (first, second) in owners.items():
        body = {"from": f"superstore:{first}", "to": f"superstore:{second}", "at": at[device].isoformat()}
        answer = await serve.post(f"/v1/devices/{device}/hand-over", json=body)
        assert answer.status_code == 201, answer.text
    await split(at)
    for region_, sales in (await reach(serve, orders)).items():
        # Both were reached before, each by the vendor of its region; the one of the other's device reaches it now.
        devices = sum(region[first] == region_ for first, _ in owners.values())
        gained = {second for first, second in owners.values() if region[first] == region_ != region[second]}
        assert sales["devices_sold"] == devices
        assert sales["customers_reached"] == vendors[region_]["customers_reached"] + len(gained)

    # It turns out to have been a while before: what was recorded in between changes hands, and nothing else does.
    earlier = {
        "cgm-4411": at["cgm-4411"] - timedelta(days=30, hours=5),
        "bike-0802": at["bike-0802"] - timedelta(minutes=7),
    }
    for device, (first, second) in owners.items():
        between = int(((times[device] >= earlier[device]) & (times[device] < at[device])).sum())
        assert between > 100
        relations = await pages(serve, "/v1/relationships", subject=device, role="owner")
        ids = {relation["party"]: relation["id"] for relation in relations}
        givers, takers = [(await record(serve, buyer))["id"] for buyer in (first, second)]
        for party, field, direction in ((givers, "valid_to", "lost"), (takers, "valid_from", "gained")):
            body = {field: earlier[device].isoformat(), "reason": "by the date on the receipt"}
            answer = await serve.post(f"/v1/relationships/{ids[party]}/correct", json=body)
            assert answer.status_code == 200, answer.text
            versions = await pages(serve, f"/v1/relationships/{ids[party]}/versions")
            [move] = versions[-1]["moves"]
            assert (move["party"], move["direction"], move["events_by_type"]) == (party, direction, {READING: between})
            assert (pd.Timestamp(move["starts"]), pd.Timestamp(move["ends"])) == (earlier[device], at[device])
    await split(earlier)


async def reach(serve: httpx.AsyncClient, orders: pd.DataFrame) -> dict[str, Any]:
    return {
        region: (await read(serve, f"/v1/parties/superstore-region:{region}", relations=0, days=0))["sales"]
        for region in orders["Region"].unique()
    }
