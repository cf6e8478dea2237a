"""The architecture document (the package's docstring) is true: what it names is there, and nothing else is."""

import ast
import re
from pathlib import Path

import drm_ingest

SOURCE = Path(drm_ingest.__file__).parent


def test_every_file_that_the_life_of_an_event_names_exists() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", drm_ingest.__doc__ or ""))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (SOURCE / name).exists()] == []


def test_the_folders_stand_in_the_order_of_the_arrow() -> None:
    folders = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and not path.name.startswith("_"))
    assert folders == ["device", "edge", "kafka", "pipeline", "postgres", "serve", "up"]
    places = [
        (drm_ingest.__doc__ or "").find(f"**{name.title() if name in ('kafka', 'postgres') else name}**")
        for name in folders
    ]
    assert all(place > 0 for place in places[:-1])
    assert places[:-1] == sorted(places[:-1])


def test_no_room_is_called_utils() -> None:
    refused = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert [path for path in SOURCE.rglob("*.py") if path.stem in refused] == []


def test_sql_is_only_written_in_postgres() -> None:
    statement = re.compile(
        r"\b(select\s+.+\s+from|insert\s+into|update\s+\w+\s+set|delete\s+from)\b", re.IGNORECASE | re.DOTALL
    )
    elsewhere = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "postgres" and any(statement.search(text) for text in _strings(path))
    ]
    assert elsewhere == []


def _strings(path: Path) -> list[str]:
    """The string literals of a file that are not docstrings."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
    ]
