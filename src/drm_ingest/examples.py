"""The examples beside a schema, tried: those in it are valid, those in `<version>.invalid.json` are refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from drm_ingest.schema import BadSchema, Schema, Schemas

EXAMPLES_MIN = 2
_MISTAKE = {"why", "data", "pointer"}
_SHAPE = '[{"why": "…", "data": …, "pointer": "/data/…"}, …]'


def mistakes(directory: Path, schema: Schema) -> list[dict[str, Any]]:
    """Return what the schema must refuse: `why` a sender could send it, `data`, and the `pointer` it is refused at.

    Raises:
        BadSchema: the file is not there, or not a list of such.
    """
    path = directory / schema.type / f"{schema.version}.invalid.json"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BadSchema(path, f"cannot be read: {error.strerror}; it shows what the schema refuses: {_SHAPE}") from None
    except ValueError as error:
        raise BadSchema(path, f"cannot be read as JSON: {error}") from None
    if not isinstance(found, list):
        raise BadSchema(path, f"is a list of mistakes: {_SHAPE}")
    for number, mistake in enumerate(found, 1):
        if not isinstance(mistake, dict) or mistake.keys() != _MISTAKE:
            raise BadSchema(path, f"mistake {number} has exactly why, data and pointer: {_SHAPE}")
        if not isinstance(mistake["pointer"], str) or not mistake["pointer"].startswith("/data"):
            raise BadSchema(path, f"mistake {number}: pointer begins at the event, with /data")
    return cast("list[dict[str, Any]]", found)


def wrong(directory: Path) -> Iterator[str]:
    """Yield, in a sentence each, what the schemas in a folder and their examples have against each other.

    Raises:
        BadSchema: a process would not start with this folder.
    """
    for schema in Schemas.load(directory):
        name = f"{schema.type} {schema.version}"
        examples = schema.document.get("examples", [])
        if len(examples) < EXAMPLES_MIN:
            yield f"{name}: has {len(examples)} examples; show at least {EXAMPLES_MIN}"
        for number, example in enumerate(examples, 1):
            if not schema.is_valid(example):
                pointer, detail = schema.first_violation(example)
                yield f"{name}: example {number} is refused at {pointer}: {detail}"
        try:
            shown = mistakes(directory, schema)
        except BadSchema as error:
            yield str(error)
            continue
        if len(shown) < EXAMPLES_MIN:
            yield f"{name}: shows {len(shown)} mistakes; show at least {EXAMPLES_MIN}"
        for mistake in shown:
            if schema.is_valid(mistake["data"]):
                yield f"{name}: takes what it ought to refuse: {mistake['why']}"
            elif (pointer := schema.first_violation(mistake["data"])[0]) != mistake["pointer"]:
                yield f"{name}: refuses at {pointer}, not at {mistake['pointer']}: {mistake['why']}"
