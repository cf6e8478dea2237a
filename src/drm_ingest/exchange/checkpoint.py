"""Where an import stands: a note beside the file, always whole, so that after a kill it goes on behind it."""

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson


@dataclass(slots=True)
class Progress:
    """What became of the lines up to `line`."""

    line: int = 0
    read: int = 0
    made: int = 0
    changed: int = 0
    same: int = 0
    refused: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    errors_bytes: int = 0


class Checkpoint:
    """The note of one import: of this file, as it is now, with this mapping."""

    def __init__(self, path: Path, what: str, mapping: str, to: str) -> None:
        """`to` is where it is imported to: of another place nothing is known."""
        self.path = path.with_name(f".{path.name}.{what}.import")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        self._of = {"file": digest.hexdigest(), "how": hashlib.sha256(f"{what}\n{mapping}\n{to}".encode()).hexdigest()}

    def load(self) -> Progress:
        """Return where an import of just this stands, or its beginning."""
        try:
            note = orjson.loads(self.path.read_bytes())
            return Progress(**note["progress"]) if note["of"] == self._of else Progress()
        except (OSError, ValueError, LookupError, TypeError):
            return Progress()

    def save(self, progress: Progress) -> None:
        """Replace the note by rename."""
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            file.write(orjson.dumps({"of": self._of, "progress": asdict(progress)}))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

    def remove(self) -> None:
        """The import is done: the next one looks at all of it again."""
        self.path.unlink(missing_ok=True)
