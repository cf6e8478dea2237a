"""The architecture document (the package's docstring) is true: what it names is there, and nothing else is."""

import ast
import re
from pathlib import Path

import drm_ingest.up

SOURCE = Path(drm_ingest.__file__).parent


def named_files() -> set[str]:
    """The files that the life of an event names, each in the folder its paragraph begins with, or at the top."""
    folder, named = "", set()
    for bold, name in re.findall(r"\*\*(\w+)\*\*|`([a-z_/]+\.py)`", drm_ingest.__doc__ or ""):
        if bold:
            folder = bold.lower()
        else:
            named.add(f"{folder}/{name}" if (SOURCE / folder / name).exists() else name)
    return named


def test_every_file_that_the_life_of_an_event_names_exists() -> None:
    assert [name for name in sorted(named_files()) if not (SOURCE / name).exists()] == []


def test_the_life_of_an_event_names_every_file() -> None:
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.name != "__init__.py"}
    unnamed = sorted(name for name in files - named_files() if not name.startswith("up/"))
    assert unnamed == [], "tell in src/drm_ingest/__init__.py what part they have in it"


def test_the_runtime_names_every_file_of_its_own() -> None:
    named = set(re.findall(r"^ {4}([a-z_]+)|`([a-z_]+)`", drm_ingest.up.__doc__ or "", re.MULTILINE))
    files = {path.stem for path in (SOURCE / "up").glob("*.py")} - {"__init__"}
    assert sorted(files - {name for names in named for name in names}) == []


def test_the_folders_stand_in_the_order_of_the_arrow() -> None:
    folders = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and not path.name.startswith("_"))
    assert folders == ["device", "edge", "exchange", "kafka", "pipeline", "postgres", "serve", "up"]
    assert [bold.lower() for bold in re.findall(r"\*\*(\w+)\*\*", drm_ingest.__doc__ or "")] == folders


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
        if "postgres" not in path.relative_to(SOURCE).parts and any(statement.search(text) for text in _strings(path))
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
