"""`drm-ingest import parties | devices | …` and `export`; what each needs is imported when it runs."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from drm_ingest.terminal import UP_ELSEWHERE, failed, settings, time

importing = typer.Typer(
    no_args_is_help=True, help="Bring in what other systems know: parties, devices, relations, events; docs/import.md."
)


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise typer.BadParameter("it is one character, or tab")
    return delimiter


File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV or NDJSON, plain or .gz; or Parquet.")]
Mapping = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="TOML. Default: columns have the names of the fields.")
]
Errors = Annotated[Path | None, typer.Option(help="For what is refused. Default: FILE.errors.ndjson.")]
AssertedBy = Annotated[str | None, typer.Option(help="Who says so. Default: import of FILE.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would become of it, and change nothing.")]
Restart = Annotated[bool, typer.Option("--restart", help="Look at all of it again; always safe.")]
Delimiter = Annotated[str, typer.Option(parser=_delimiter, metavar="CHARACTER", help="Of a CSV; `tab` is one too.")]
ShareMax = Annotated[float, typer.Option(min=0, max=1, help="Stop where more of the lines are refused.")]
LinesMin = Annotated[int, typer.Option(min=1, help="Fewer refused lines never stop it.")]


@importing.command()
def parties(
    file: File,
    mapping: Mapping = None,
    errors: Errors = None,
    asserted_by: AssertedBy = None,
    dry_run: DryRun = False,
    restart: Restart = False,
    refused_share_max: ShareMax = 0.1,
    refused_lines_min: LinesMin = 100,
    delimiter: Delimiter = ",",
) -> None:
    """Bring in parties, each found again by its references.

    Run it again after it was interrupted: it goes on where it stopped. Exits with 0 only if no line was refused.
    """
    _run(
        "parties", file, mapping, errors, asserted_by, dry_run, restart, refused_share_max, refused_lines_min, delimiter
    )  # fmt: skip


@importing.command()
def devices(
    file: File,
    mapping: Mapping = None,
    errors: Errors = None,
    asserted_by: AssertedBy = None,
    dry_run: DryRun = False,
    restart: Restart = False,
    refused_share_max: ShareMax = 0.1,
    refused_lines_min: LinesMin = 100,
    delimiter: Delimiter = ",",
) -> None:
    """Bring in devices: register those that are not known, and say anew what the others are.

    Run it again after it was interrupted: it goes on where it stopped. Exits with 0 only if no line was refused.
    """
    _run(
        "devices", file, mapping, errors, asserted_by, dry_run, restart, refused_share_max, refused_lines_min, delimiter
    )  # fmt: skip


@importing.command()
def relationships(
    file: File,
    mapping: Mapping = None,
    errors: Errors = None,
    asserted_by: AssertedBy = None,
    dry_run: DryRun = False,
    restart: Restart = False,
    refused_share_max: ShareMax = 0.1,
    refused_lines_min: LinesMin = 100,
    delimiter: Delimiter = ",",
) -> None:
    """Bring in relations: who held which role on which device or party, and when. Their parties come first.

    Run it again after it was interrupted: it goes on where it stopped. Exits with 0 only if no line was refused.
    """
    _run(
        "relationships", file, mapping, errors, asserted_by, dry_run, restart, refused_share_max, refused_lines_min,
        delimiter,
    )  # fmt: skip


@importing.command()
def events(
    file: File,
    mapping: Mapping = None,
    errors: Errors = None,
    url: Annotated[str, typer.Option(envvar="DRM_EDGE_URL", help="Where the edge is.")] = "http://127.0.0.1:8080",
    key: Annotated[str, typer.Option(envvar="DRM_SENDER_KEY", help="A sender's key.")] = "",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of one connection's time; the rest it pauses.")] = 0.25,
    lag_max_events: Annotated[
        int, typer.Option(min=0, help="Stand still while enrich or attach has more before it; 0: do not look.")
    ] = 5_000,
    patience_s: Annotated[float, typer.Option(min=0.1, help="Try again for so long, then give up.")] = 300.0,
    dry_run: DryRun = False,
    restart: Restart = False,
    refused_share_max: ShareMax = 0.1,
    refused_lines_min: LinesMin = 100,
    delimiter: Delimiter = ",",
) -> None:
    """Send events of the past to the edge, the way of live ones, in a lane that yields to these.

    An event without an id gets one that is made of all else in it: what is sent twice is stored once.
    Run it again after it was interrupted: it goes on where it stopped. Exits with 0 only if no line was refused.
    """
    from drm_ingest.exchange.command import Lane, run_import
    from drm_ingest.exchange.opening import Import

    if not key.strip() and not dry_run:
        told = f"no key: set DRM_SENDER_KEY or --key; `drm-ingest key` makes one, and {UP_ELSEWHERE}"
        raise typer.BadParameter(told, param_hint="--key")
    wanted = Import(
        "events", file, mapping, errors, None, dry_run, restart, refused_share_max, refused_lines_min, delimiter
    )  # fmt: skip
    raise typer.Exit(run_import(settings(), wanted, Lane(url, key, share, lag_max_events, patience_s)))


def _run(
    what: str,
    file: Path,
    mapping: Path | None,
    errors: Path | None,
    asserted_by: str | None,
    dry_run: bool,
    restart: bool,
    refused_share_max: float,
    refused_lines_min: int,
    delimiter: str,
) -> None:
    from drm_ingest.exchange.command import run_import
    from drm_ingest.exchange.opening import Import

    wanted = Import(
        what, file, mapping, errors, asserted_by, dry_run, restart, refused_share_max, refused_lines_min, delimiter
    )  # fmt: skip
    raise typer.Exit(run_import(settings(), wanted))


def export(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where to; made when it is not there.")],
    only: Annotated[
        list[str] | None, typer.Option(help="events, parties, relationships or devices; repeatable. Default: all.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(parser=time, metavar="TIME", help="Only months of events that end after this (UTC)."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=time, metavar="TIME", help="Only months of events that begin before this (UTC)."),
    ] = None,
) -> None:
    """Write everything there is into Parquet files, for DuckDB, pandas and their like; docs/import.md.

    Run it again after it was interrupted: it goes on behind what is done.
    Run again when it is complete, it replaces every file by one of now.
    """
    try:
        from drm_ingest.exchange.export import WHAT, run_export
    except ModuleNotFoundError as missing:
        raise failed(f"{missing.name} is not installed: pip install 'drm-ingest[parquet]'") from None

    if unknown := set(only or ()) - set(WHAT):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(WHAT)}", param_hint="--only")
    raise typer.Exit(run_export(settings(), folder, only or WHAT, since, until))
