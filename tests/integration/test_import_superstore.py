"""The Superstore orders: customers, vendors by region, and purchases, every count checked against the file."""

import csv
import gzip
import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest

MAPPINGS = Path(__file__).parents[2] / "docs" / "superstore"


@pytest.fixture
def orders() -> Path:
    spec = importlib.util.find_spec("bokeh_sampledata")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "_data" / "SampleSuperstore.csv.gz"


def import_(
    environment: Mapping[str, str], what: str, orders: Path, mapping: str, tmp_path: Path, *options: str
) -> str:
    file = tmp_path / orders.name
    if not file.exists():
        file.symlink_to(orders)
    done = subprocess.run(
        [sys.executable, "-m", "drm_ingest", "import", what, str(file), "--mapping", str(MAPPINGS / mapping), *options],
        env=dict(environment), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


async def test_customers_vendors_and_purchases_are_those_of_the_file(
    db: asyncpg.Connection, environment: Mapping[str, str], tmp_path: Path, orders: Path
) -> None:
    with gzip.open(orders, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    buyers = {(row["Segment"], row["City"], row["State"], row["Postal Code"]) for row in rows}
    by_region = Counter(row["Region"] for row in rows)
    pairs = {(row["Region"], row["Segment"], row["City"], row["State"], row["Postal Code"]) for row in rows}

    told = import_(environment, "parties", orders, "customers.toml", tmp_path)
    assert f"made {len(buyers):,} · changed 0 · the same {len(rows) - len(buyers):,} · refused 0" in told
    told = import_(environment, "parties", orders, "vendors.toml", tmp_path)
    assert f"made {len(by_region)} · changed 0" in told
    told = import_(environment, "relationships", orders, "buys-from.toml", tmp_path)
    assert f"made {len(pairs):,} · changed 0 · the same {len(rows) - len(pairs):,} · refused 0" in told
    kinds = dict(await db.fetch("select kind, count(*) from party group by kind"))
    assert kinds == {"customer": len(buyers), "vendor": len(by_region)}
    reached = dict(
        await db.fetch(
            "select name, count(distinct subject) from relationship join party on party.id = party "
            "where role = 'buys_from' and upper_inf(recorded) group by name"
        )
    )
    assert reached == Counter(pair[0] for pair in pairs)
    told = import_(environment, "events", orders, "purchases.toml", tmp_path, "--dry-run")
    assert f"accepted {len(rows):,} · refused 0" in told
