"""The command line: `drm-ingest COMMAND`; the command picks the process."""

import typer

cli = typer.Typer(no_args_is_help=True, help="Device relationship management.")


@cli.callback()
def main() -> None:
    """Device and app events, in real time, on the records of the people they belong to."""


if __name__ == "__main__":
    cli()
