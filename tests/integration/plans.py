"""What statements read, by their plans: never all of a large table, nor all of an index."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg

from drm_ingest.serve.app import PLANNER

LARGE = {
    "event": r"\bsubject\b[^&@<>]*= ",
    "event_identity": r"\bkey\b[^&@<>]*= ",
    "subject_day": r"\bsubject\b[^&@<>]*= ",
    "relationship": r"\b(subject|party|id)\b[^&@<>]*= ",
    "relationship_change": r"\brelationship\b[^&@<>]*= ",
    "relationship_move": r"\bnumber\b[^&@<>]*= ",
    "device": r"\bsubject\b[^&@<>]*= ",
    "party": r"\bid\b[^&@<>]*= ",
    "party_attribute": r"\bparty\b[^&@<>]*= ",
    "party_link": r"\b(party|other)\b[^&@<>]*= ",
    "party_ref": r"\b(party|namespace)\b[^&@<>]*= ",
    "dead_letter": r"\bkey\b[^&@<>]*= ",
    "large_party": r"\b(party|id)\b[^&@<>]*= ",
    "large_party_span": r"\b(large|subject)\b[^&@<>]*= ",
    "large_party_day": r"\blarge\b[^&@<>]*= ",
    "large_party_part": r"\b(large|subject)\b[^&@<>]*= ",
    "large_party_reached": r"\b(large|party)\b[^&@<>]*= ",
}
"""What a table that grows is entered by: the columns that an index must be asked for."""


def read_whole(plan: dict[str, Any]) -> list[str]:
    """Return what a plan reads all of: tables, and indexes that it enters by something else than they are for."""
    found = []
    for node in _nodes(plan):
        table = _table(node)
        if table is None:
            continue
        if node["Node Type"] == "Seq Scan":
            found.append(f"{table}, from its beginning to its end")
        elif "Index Name" in node or node["Node Type"] == "Bitmap Index Scan":
            condition = node.get("Index Cond", "")
            if not re.search(LARGE[table], condition):
                found.append(f"{node['Index Name']} of {table} by {condition or 'nothing'}")
    return found


def _nodes(node: dict[str, Any], above: str | None = None) -> Iterator[dict[str, Any]]:
    table = node.get("Relation Name", above)
    yield node | ({"Relation Name": table} if table and "Index Name" in node else {})
    for below in node.get("Plans", []):
        yield from _nodes(below, table if node["Node Type"] in _OF_ONE_TABLE else None)


_OF_ONE_TABLE = {"Bitmap Heap Scan", "BitmapAnd", "BitmapOr"}


def _table(node: dict[str, Any]) -> str | None:
    name = node.get("Relation Name", "")
    name = "event" if re.fullmatch(r"event_(default|\d{4}_\d{2})", name) else name
    return name if name in LARGE else None


async def reads_whole(db: asyncpg.Connection, statement: str, values: Sequence[object]) -> list[str]:
    """Run a statement as serve does; return what it read whole."""
    for name, value in PLANNER.items():
        await db.execute(f"set {name} = {value}")
    (plan,) = json.loads(await db.fetchval("explain (analyze, format json) " + statement, *values))
    return read_whole(plan["Plan"])
