"""What every command of the command line does first and last: read the settings, say what is wrong."""

from typing import TYPE_CHECKING

import typer

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


def failed(message: object) -> typer.Exit:
    """Tell a person what is wrong; raise what this returns."""
    typer.echo(str(message), err=True)
    return typer.Exit(1)
