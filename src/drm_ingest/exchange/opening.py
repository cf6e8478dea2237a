"""Opening a file and its mapping: what would be wrong in every line is told once, before any is taken."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drm_ingest.exchange import devices, events, parties
from drm_ingest.exchange.checkpoint import Checkpoint, Progress
from drm_ingest.exchange.fields import Wrong, wrong_in_all
from drm_ingest.exchange.fit import in_short, listed, misfit
from drm_ingest.exchange.lines import File, Unreadable
from drm_ingest.exchange.mapping import BadMapping, Columns, Unmappable
from drm_ingest.exchange.refused import ErrorFile, Refused, ShareMax
from drm_ingest.exchange.taking import Desk
from drm_ingest.serve.relationships import NewRelationship

Tell = Callable[[str], None]

REFUSED_TOLD = 5
_TARGETS: Mapping[str, tuple[Callable[[Mapping[str, Any]], Wrong], Collection[str]]] = {
    "parties": (parties.wrong, parties.Party.model_fields),
    "devices": (partial(wrong_in_all, devices.Device), ("subject", "model", "firmware")),
    "relationships": (partial(wrong_in_all, NewRelationship), NewRelationship.model_fields),
    "events": (events.wrong, events.FIELDS),
}
"""Of each import what it refuses whatever the columns hold, and its fields."""
_WITHIN = {"refs": "refs.<namespace>", "attributes": "attributes.<name>", "data": "data.<name>"}


@dataclass(frozen=True, slots=True)
class Import:
    """What to import, and how."""

    what: str
    path: Path
    mapping: Path | None
    errors: Path | None
    asserted_by: str | None
    dry_run: bool
    restart: bool
    refused_share_max: float
    refused_lines_min: int
    delimiter: str


def errors_path(wanted: Import) -> Path:
    """Where what is refused is kept: beside the file, unless another place is named."""
    return wanted.errors or wanted.path.with_name(wanted.path.name + ".errors.ndjson")


def opened(wanted: Import, to: str, tell: Tell) -> tuple[Desk, Progress]:
    """Open the file and its mapping, and see where an earlier run stopped.

    Raises:
        BadMapping, Unreadable, Stopped, OSError
    """
    columns = Columns.load(wanted.mapping)
    file = File(wanted.path, wanted.delimiter)
    if unfit := _unfit(wanted, columns, file):
        if likely := file.likely_delimiter():
            said = "tab" if likely == "\t" else f"'{likely}'"
            raise Unreadable(
                f"the header of {wanted.path.name} seems to be separated by {said}: say --delimiter {said}"
            )
        raise BadMapping(unfit)
    how = f"{columns.text}\n{wanted.delimiter}"
    note = None if wanted.dry_run else Checkpoint(wanted.path, wanted.what, how, to)
    progress = Progress() if note is None or wanted.restart else note.load()
    if progress.line:
        tell(f"Going on after line {progress.line}; --restart looks at all of it again.")
    shown = 0

    def on_refused(line: int, why: Refused) -> None:
        nonlocal shown
        shown += 1
        if shown <= REFUSED_TOLD:
            tell(f"line {line}: {why.code}: {f'{why.pointer} ' if why.pointer else ''}{why.reason}")

    share_max = ShareMax(wanted.refused_share_max, wanted.refused_lines_min)
    errors = None if wanted.dry_run else ErrorFile(errors_path(wanted), progress.errors_bytes)
    if errors is not None and errors.of_an_earlier_run:
        tell(f"{errors.path} has what an earlier run refused; what this one refuses takes its place.")
    return Desk(file, columns, share_max, errors, note, on_refused), progress


def _unfit(wanted: Import, columns: Columns, file: File) -> str | None:
    """Return why no line of the file can be taken so, with what to do."""
    header = file.header()
    if wanted.mapping is not None:
        if header is not None and (wrong := misfit(columns.named, header)):
            return f"{wanted.mapping} does not fit {wanted.path.name}: {wrong}"
        wrong = _wrong_in_all(wanted.what, columns, ())
        return f"{wanted.mapping} does not fit {wanted.what}: {wrong}" if wrong else None
    names = file.first_names() if header is None else header
    some_fit = {name.partition(".")[0] for name in names} & set(_TARGETS[wanted.what][1])
    if header is None and (not names or some_fit):
        return None  # each line has its own, and one that is wrong says nothing of the others
    if not (wrong := _wrong_in_all(wanted.what, columns, names)):
        return None
    wrong = wrong if some_fit else wrong.rpartition(" · ")[2]  # where nothing fits, what does not is no news
    return (
        f"the columns of {wanted.path.name} are not the fields of {wanted.what}: {wrong}; there are {listed(names)} · "
        "--mapping names a file that says which column is which field (docs/import.md)"
    )


def _wrong_in_all(what: str, columns: Columns, names: Collection[str]) -> str | None:
    """Return what is wrong whatever the columns hold, and which fields are expected."""
    find, fields = _TARGETS[what]
    wrong: dict[str, str] = {}
    try:
        for pointer, told in find(columns.known(names)):
            wrong.setdefault(pointer, told)
    except Unmappable as error:
        wrong[error.pointer] = error.reason
    short = in_short([f"{pointer}: {told}" for pointer, told in wrong.items()])
    return short and f"{short} · expected are {', '.join(_WITHIN.get(name, name) for name in fields)}"
