"""`drm-ingest dead-letters list | show | replay`; what each needs is imported when it runs."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drm_ingest.terminal import failed, settings, time

if TYPE_CHECKING:
    from drm_ingest.pipeline.letters.find import Wanted

letters = typer.Typer(
    no_args_is_help=True, help="What was set aside and why: find it, look at it, send it on its way again."
)

Stage = Annotated[Literal["enrich", "attach"] | None, typer.Option(help="Only what this worker set aside.")]
Code = Annotated[str | None, typer.Option(help="Only with this code: unreadable, row_refused, id_conflict.")]
Type = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
Subject = Annotated[str | None, typer.Option(help="Only events about this device.")]
Since = Annotated[
    datetime | None, typer.Option(parser=time, metavar="TIME", help="Only what was set aside then (UTC) or later.")
]
Until = Annotated[
    datetime | None, typer.Option(parser=time, metavar="TIME", help="Only what was set aside before then (UTC).")
]


@letters.command("list")
def list_(
    stage: Stage = None,
    code: Code = None,
    type_: Type = None,
    subject: Subject = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The latest so many; with --json all.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="For programs: a JSON document a line, the bytes too.")] = False,
) -> None:
    """List dead letters; ✓ behind one says that it was replayed."""
    from drm_ingest.pipeline.letters.command import list_all

    raise typer.Exit(list_all(settings(), _wanted(stage, code, type_, subject, since, until), limit, json=json))


@letters.command()
def show(
    which: Annotated[str, typer.Argument(metavar="LETTER", help="As in the list, 2:17; or a subject.")],
    raw: Annotated[bool, typer.Option("--raw", help="Its original bytes and nothing else.")] = False,
    json: Annotated[bool, typer.Option("--json", help="For programs: a JSON document a line.")] = False,
) -> None:
    """Show a dead letter with everything that is known of it."""
    from drm_ingest.pipeline.letters.command import show_some

    raise typer.Exit(show_some(settings(), which, raw=raw, json=json))


@letters.command()
def replay(
    which: Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", help="As in the list: 2:17.")] = None,
    stage: Stage = None,
    code: Code = None,
    type_: Type = None,
    subject: Subject = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are; without it something must be named.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.1, help="At most so many a second.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Those too that were replayed before.")] = False,
    from_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The mended event, in place of the one letter named."),
    ] = None,
    mended: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(help="Lines as of `list --json`, their values mended; only those are replayed. - for stdin."),
    ] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="See for so long what becomes of them; 0: do not.")] = 15.0,
) -> None:
    """Write dead letters again where they came from; their id, time and receipt stay, and each is stored once.

    Run it again after it was interrupted: it goes on where it stopped. A letter `id_conflict` stays what it is, and is
    left out unless it is named, by its position or with --code.

    Example: drm-ingest dead-letters show 2:17 --raw > event.json, mend it, then:
    drm-ingest dead-letters replay 2:17 --from-file event.json
    """
    from drm_ingest.pipeline.letters.command import BadInput, replay_some, values

    wanted = _wanted(stage, code, type_, subject, since, until)
    if wanted.everything and not which and not mended and not every:
        raise failed("name the letters, or filter them; --all replays all there are")
    try:
        named = values(which or [], from_file, mended)
    except BadInput as error:
        raise failed(error) from None
    raise typer.Exit(
        replay_some(settings(), wanted, named, dry_run=dry_run, rate=rate, again=again, limit=limit, wait_s=wait_s)
    )


def _wanted(
    stage: str | None,
    code: str | None,
    type_: str | None,
    subject: str | None,
    since: datetime | None,
    until: datetime | None,
) -> "Wanted":
    from drm_ingest.pipeline.letters.find import Wanted

    return Wanted(stage, code, type_, subject, since, until)
