"""What every command of the command line does first and last: read the settings, say what is wrong."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

UP_ELSEWHERE = (
    "that of a `drm-ingest up` in another folder is found with DRM_DATA_DIR=THERE/.drm, or with --data-dir THERE/.drm "
    "right behind `drm-ingest`"
)

if TYPE_CHECKING:
    from drm_ingest.settings import Settings


def settings() -> "Settings":
    """Read the settings, or end and say which are wrong."""
    from pydantic import ValidationError

    from drm_ingest.settings import Settings, refused

    try:
        return Settings()
    except ValidationError as error:
        raise failed("\n".join(what for _, what in refused(error))) from None


def time(text: str) -> datetime:
    """Read a time that is an option; UTC where it has no offset."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write it as in 2026-03-01 or 2026-03-01T09:30Z") from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def counted(count: int, one: str) -> str:
    """Return so many of them in words, as in 1 line and 2,000 lines."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def failed(message: object) -> typer.Exit:
    """Tell a person what is wrong; raise what this returns."""
    typer.echo(str(message), err=True)
    return typer.Exit(1)
