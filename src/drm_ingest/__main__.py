"""The command line: `drm-ingest COMMAND`; the command picks the process.

Each command imports what it needs when it runs, so that `--help` and short tools start at once.
"""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from drm_ingest.exchange.cli import export, importing
from drm_ingest.pipeline.letters.cli import letters
from drm_ingest.terminal import failed as _failed
from drm_ingest.terminal import settings as _settings
from drm_ingest.terminal import time as _time

CONNECTIONS = ("DRM_KAFKA_", "DRM_POSTGRES_", "DRM_EDGE_URL")
PROCESSES = {"edge", "enrich", "attach", "serve"}  # they write to their log what others say on the terminal
TOOLS = {
    "dead-letters",
    "demo",
    "doctor",
    "export",
    "import",
    "send",
    "tail",
}  # what speaks to a running `up`, when nothing else is set

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Device relationship management: device and app events, in real time, on the records of their people.\n\n"
    "Every setting is an environment variable DRM_*; docs/settings.md lists them.",
)


cli.add_typer(letters, name="dead-letters")
cli.add_typer(importing, name="import")


@cli.callback()
def main(
    context: typer.Context,
    data_dir: Annotated[
        Path, typer.Option(envvar="DRM_DATA_DIR", help="Where tools look for a running `up`.", show_default=True)
    ] = Path(".drm"),
) -> None:
    if context.invoked_subcommand in TOOLS:
        from drm_ingest.up.data_dir import DataDir, not_made_by_up

        if not any(name.startswith(CONNECTIONS) for name in not_made_by_up(os.environ)):
            found = DataDir(data_dir).published_environment()
            os.environ.update(found)
            asked_for_help = not {"-h", "--help"}.isdisjoint(sys.argv)
            if not found and not asked_for_help and context.invoked_subcommand in {"dead-letters", "doctor", "tail"}:
                typer.echo(
                    f"no running `drm-ingest up` found in {data_dir}; cd there, or set DRM_DATA_DIR, or "
                    "DRM_KAFKA_BOOTSTRAP and DRM_POSTGRES_DSN",
                    err=True,
                )
        import logging

        logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # a person is told in our own words
    if context.invoked_subcommand not in PROCESSES and any(name.startswith("DRM_") for name in os.environ):
        from drm_ingest.settings import unknown

        for name, meant in unknown(os.environ):
            typer.echo(f"{name} is unknown and ignored" + (f"; is {meant} meant?" if meant else ""), err=True)


@cli.command()
def up(
    data_dir: Annotated[Path, typer.Option(help="Everything it keeps: data, keys, logs.")] = Path(".drm"),
    port: Annotated[
        int, typer.Option(min=1, max=65_532, help="Of the edge; serve, enrich and attach take the next three.")
    ] = 8080,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when the whole path works: addresses, keys and pids, as JSON.")
    ] = None,
) -> None:
    """Run the whole path on this machine, with a Kafka and a Postgres of its own, until Ctrl-C.

    DRM_KAFKA_BOOTSTRAP and DRM_POSTGRES_DSN make it use yours instead.
    """
    try:
        from drm_ingest.up.command import run
    except ModuleNotFoundError as missing:
        raise _failed(f"{missing.name} is not installed: pip install 'drm-ingest[up]'") from None
    raise typer.Exit(run(data_dir, port, ready_file))


@cli.command()
def edge(
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the port; one a core.")] = 1,
) -> None:
    """Take events over HTTP and WebSocket and write them to Kafka, until SIGTERM."""
    from drm_ingest.edge.command import run

    raise typer.Exit(run(_settings(), workers))


@cli.command()
def enrich() -> None:
    """Correct the time of events, give them context, write them to the topics of their families; until SIGTERM."""
    from drm_ingest.pipeline.command import run_until_told
    from drm_ingest.pipeline.enrich.worker import run

    raise typer.Exit(run_until_told(_settings(), "enrich", run))


@cli.command()
def attach() -> None:
    """Store events from the families' topics in Postgres, each exactly once; until SIGTERM."""
    from drm_ingest.pipeline.attach.worker import run
    from drm_ingest.pipeline.command import run_until_told

    raise typer.Exit(run_until_told(_settings(), "attach", run))


@cli.command()
def serve() -> None:
    """Serve the registry, the records and the timelines, until SIGTERM."""
    from drm_ingest.serve.app import run

    run(_settings())


@cli.command()
def migrate() -> None:
    """Bring the tables in Postgres up to date; safe to repeat, and to run from several machines at once."""
    import asyncio

    from asyncpg import PostgresError

    from drm_ingest.postgres.migrate import BadMigrations, MigrationFailed
    from drm_ingest.postgres.migrate import migrate as apply

    try:
        applied = asyncio.run(apply(_settings().postgres_dsn.get_secret_value()))
    except (BadMigrations, MigrationFailed) as error:
        raise _failed(error) from None
    except (OSError, TimeoutError, PostgresError) as error:
        raise _failed(f"Postgres cannot be reached: {error}; check DRM_POSTGRES_DSN") from None
    for name in applied:
        typer.echo(f"applied {name}")
    typer.echo("the database is up to date")


@cli.command()
def topics() -> None:
    """Create the topics that are missing, and check all of them; safe to repeat, changes nothing that is there."""
    import asyncio

    from drm_ingest.kafka.connection import KafkaUnreachable
    from drm_ingest.kafka.topics import TopicsWrong, check, create
    from drm_ingest.schema import BadSchema, Schemas

    async def create_and_check() -> list[str]:
        settings = _settings()
        families = Schemas.load(settings.schemas_dir).families
        created = await create(settings, families)
        await check(settings, families)
        return created

    try:
        created = asyncio.run(create_and_check())
    except (KafkaUnreachable, TopicsWrong, BadSchema) as error:
        raise _failed(error) from None
    for name in created:
        typer.echo(f"created {name}")
    typer.echo("the topics are as they must be")


@cli.command()
def key(
    sender: Annotated[str, typer.Argument(help="Who is to hold it; made when it does not exist.")],
    role: Annotated[Literal["sender", "reader", "admin"], typer.Option(help="Of a sender that is made.")] = "sender",
) -> None:
    """Make a key and show it, once: the first admin's, from where Postgres can be reached; others through `serve`."""
    import asyncio

    from asyncpg import PostgresError

    from drm_ingest.postgres.credentials import ensure_key, new_key
    from drm_ingest.postgres.pool import connect

    async def store(plain: str) -> str:
        connection = await connect(_settings(), "drm key")
        try:
            return await ensure_key(connection, sender, role, plain)
        finally:
            await connection.close()

    plain, _hash, _prefix = new_key()
    try:
        holds = asyncio.run(store(plain))
    except (OSError, TimeoutError, PostgresError) as error:
        raise _failed(f"no key was made: {error}; check DRM_POSTGRES_DSN, and that `migrate` has run") from None
    typer.echo(f"sender {sender}, role {holds}; this key is not shown again:", err=True)
    typer.echo(plain)


@cli.command()
def token(
    device: Annotated[str, typer.Argument(help="The device it is for: the subject of its events.")],
    private_key: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="PEM, Ed25519 or P-256; its public half is registered.")
    ],
    kid: Annotated[str | None, typer.Option(help="Default: the key's thumbprint, as in the registry.")] = None,
    lifetime_s: Annotated[
        float | None, typer.Option(min=1, help="Default: as long as the edge allows, DRM_TOKEN_LIFETIME_MAX_S.")
    ] = None,
) -> None:
    """Make a token for a device, to try it out: docs/credentials.md tells how a fleet makes its own.

    Example: curl $DRM_EDGE_URL/v1/events -H "Authorization: Bearer $(drm-ingest token meter-7 --private-key fleet.pem)"
    """
    from datetime import timedelta

    from drm_ingest.device.token import NoPrivateKey, make

    settings = _settings()
    lifetime = timedelta(seconds=lifetime_s or settings.token_lifetime_max_s)
    try:
        typer.echo(make(private_key, device, kid=kid, audience=settings.token_audience, lifetime=lifetime))
    except (NoPrivateKey, OSError) as error:
        raise _failed(error) from None


@cli.command()
def schemas(
    directory: Annotated[Path | None, typer.Argument(help="Default: DRM_SCHEMAS_DIR, or those shipped.")] = None,
) -> None:
    """Check a folder of schemas before a process starts with it, and try the examples beside them."""
    from drm_ingest.examples import wrong
    from drm_ingest.schema import BadSchema, Schemas, shipped

    directory = directory or _settings().schemas_dir or shipped()
    try:
        for schema in Schemas.load(directory):
            typer.echo(f"{schema.type} {schema.version} → {schema.family}")
        found = list(wrong(directory))
    except BadSchema as error:
        raise _failed(str(error)) from None
    for what in found:
        typer.echo(what, err=True)
    if found:
        raise typer.Exit(1)
    typer.echo("nothing is wrong")


@cli.command()
def doctor() -> None:
    """Look at Kafka, its topics, Postgres, its tables, the workers and the clocks, and say what to do; 1 if wrong."""
    from rich.console import Console

    from drm_ingest.doctor import run

    raise typer.Exit(run(Console(highlight=False)))


@cli.command()
def send(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV or NDJSON, plain or .gz.")],
    url: Annotated[str, typer.Option(envvar="DRM_EDGE_URL", help="Where the edge is.")] = "http://127.0.0.1:8080",
    key: Annotated[str, typer.Option(envvar="DRM_SENDER_KEY", help="A sender's key.")] = "",
    type_: Annotated[str | None, typer.Option("--type", help="The type of every event.")] = None,
    type_column: Annotated[str | None, typer.Option(help="The column that holds the type.")] = None,
    subject: Annotated[str | None, typer.Option(help="The device every event is about.")] = None,
    subject_column: Annotated[str | None, typer.Option(help="The column that names the device.")] = None,
    time_column: Annotated[str | None, typer.Option(help="The column that tells when it happened (ISO 8601).")] = None,
    timezone: Annotated[str, typer.Option(help="Of times without an offset.")] = "UTC",
    starts_at: Annotated[
        datetime | None,
        typer.Option(parser=_time, metavar="TIME", help="The time column tells the time passed since then (UTC)."),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="The column with an id; else file name, line and its checksum make one, the same each time."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN or COLUMN=NAME to put into data; repeatable. Default: all left over."),
    ] = None,
    unit: Annotated[list[str] | None, typer.Option(help="NAME=UNIT, put into data's units; repeatable.")] = None,
    absent: Annotated[
        list[str] | None, typer.Option(help="What tells that there is no value, such as nil; repeatable.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="A multiple of real time. Default: as fast as acknowledged.")
    ] = None,
    batch_events: Annotated[int, typer.Option(min=1, max=10_000, help="Events a request.")] = 500,
    patience_s: Annotated[float, typer.Option(min=0.1, help="Try again for so long, then give up.")] = 300.0,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Pass over lines that make no event, and count them.")
    ] = False,
    progress_file: Annotated[
        Path | None, typer.Option(help="Where it stopped. Default: .<file name>.sent in this folder.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Send all of it again; always safe.")] = False,
) -> None:
    """Send a recording to an edge as events; run it again and it goes on where it stopped.

    Exits with 0 only if every event was accepted; lines that it was told to skip do not count.

    Example: drm-ingest send ride.csv --type device.measurement --subject bike-7 --time-column time --rate 60
    """
    from zoneinfo import ZoneInfo

    from drm_ingest.device.command import Sending, send_file
    from drm_ingest.device.recording import Recording

    if not key.strip():
        raise typer.BadParameter("no key: set DRM_SENDER_KEY or --key; `drm-ingest key` makes one", param_hint="--key")
    try:
        ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):
        told = f"there is no time zone {timezone!r}; name one as in Europe/Vienna"
        raise typer.BadParameter(told, param_hint="--timezone") from None
    recording = Recording(
        path=file,
        type=type_,
        type_column=type_column,
        subject=subject,
        subject_column=subject_column,
        time_column=time_column,
        timezone=timezone,
        starts_at=starts_at,
        id_column=id_column,
        columns=dict((entry.partition("=")[::2] if "=" in entry else (entry, entry)) for entry in column or ()),
        absent=absent or (),
        units=dict(entry.partition("=")[::2] for entry in unit or ()),
    )
    sending = Sending(
        recording,
        url,
        key,
        progress_file or Path(f".{file.name}.sent"),
        rate=rate,
        batch_events=batch_events,
        patience_s=patience_s,
        skip_bad_lines=skip_bad_lines,
        restart=restart,
    )
    raise typer.Exit(send_file(sending))


@cli.command()
def tail(
    type_: Annotated[
        str,
        typer.Argument(
            metavar="TYPE", help="A type, a family of types, `unclassified`, `dead-letters` or `relationship-changes`."
        ),
    ],
    subject: Annotated[str | None, typer.Option(help="Only what is about this device, or about `party:<id>`.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, help="Stop after so many seconds; with --limit, exit code 1 if too few came."),
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Not only from now on.")] = False,
    ndjson: Annotated[
        bool | None,
        typer.Option("--ndjson/--pretty", help="For programs or for people. Default: people on a terminal."),
    ] = None,
) -> None:
    """Show enriched events as they arrive in Kafka, what was set aside and why, or what changed in records.

    Example: drm-ingest tail device.measurement --subject meter-7 --from-beginning
    """
    import asyncio

    from rich.console import Console

    from drm_ingest.kafka import show as looks
    from drm_ingest.kafka import tail as look
    from drm_ingest.kafka.connection import KafkaUnreachable
    from drm_ingest.schema import BadSchema, Schemas

    settings = _settings()

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    def on_ready(partitions: int) -> None:
        of = f"{partitions} partitions" if partitions > 1 else "the partition of that subject"
        since = "from the beginning" if from_beginning else "from now on (--from-beginning: all)"
        typer.echo(f"{wanted.topic}, {of}, {since}; Ctrl-C ends it", err=True)

    if ndjson is None:
        ndjson = not sys.stdout.isatty()
    console = Console(highlight=False)
    try:
        schemas = Schemas.load(settings.schemas_dir)
        wanted = look.Wanted.of(settings, schemas, type_, subject)
        if wanted.dead_letters:
            show = looks.dead_letters_as_lines(write) if ndjson else looks.dead_letters_as_text(console)
        elif wanted.changes:
            show = looks.as_lines(write) if ndjson else looks.changes_as_text(console)
        else:
            show = looks.as_lines(write) if ndjson else looks.as_text(console)
        if wanted.unclassified:
            close = ", ".join(look.close_to(type_, schemas))
            meant = f" (did you mean {close}?)" if close else ""
            typer.echo(f"{type_} has no schema here{meant}; its events are looked for in {wanted.topic}", err=True)
        shown = asyncio.run(
            look.tail(
                settings, wanted, show,
                from_beginning=from_beginning, limit=limit, timeout_s=timeout, on_ready=on_ready,
            )
        )  # fmt: skip
    except (KafkaUnreachable, look.NothingToTail, BadSchema) as error:
        raise _failed(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain of it again at exit
        raise typer.Exit(0) from None
    raise typer.Exit(1 if limit is not None and shown < limit else 0)


@cli.command()
def demo(
    context: typer.Context,
    edge_url: Annotated[str, typer.Option(envvar="DRM_EDGE_URL", help="Default: of the running `up`.")] = "",
    serve_url: Annotated[str, typer.Option(envvar="DRM_SERVE_URL", help="Default: of the running `up`.")] = "",
    sender_key: Annotated[str, typer.Option(envvar="DRM_SENDER_KEY", help="Default: of the running `up`.")] = "",
    admin_key: Annotated[str, typer.Option(envvar="DRM_ADMIN_KEY", help="Default: of the running `up`.")] = "",
) -> None:
    """Send real recordings of two customers' devices, with purchases and ratings, and print both records.

    Where no `drm-ingest up` is running and no addresses are given, it starts one for as long as it takes.
    """
    from drm_ingest.device.demo import run, run_beside_own_up

    if edge_url and serve_url and sender_key and admin_key:
        raise typer.Exit(run(edge_url, serve_url, sender_key, admin_key))
    raise typer.Exit(run_beside_own_up(context.find_root().params["data_dir"]))


cli.command()(export)


if __name__ == "__main__":
    cli()
