"""What a person sees when everything works: where it is, and what to try first."""

import shlex
import shutil
import sys
from pathlib import Path

from rich.markup import escape

from drm_ingest.up.data_dir import DataDir


def greeting(
    *,
    edge_url: str,
    serve_url: str,
    metrics: dict[str, str],
    kafka_bootstrap: str,
    data_dir: DataDir,
    sender_key: str,
    topic: str,
    tools_need_environment: bool,
) -> str:
    """Compose the text, as rich markup without anything to wrap: its commands are there to be copied."""
    tool = f"{_program()} tail device.measurement --from-beginning"
    if data_dir.path != Path(".drm").absolute():
        tool = f"DRM_DATA_DIR={shlex.quote(str(data_dir.path))} {tool}"
    kcat_note = "" if not tools_need_environment else "   (with your Kafka's own security settings)"
    return f"""
[bold]The whole path works.[/] Ctrl-C stops everything; the data stays in {data_dir.path}

  edge       {edge_url}     events go in here; {edge_url}/docs
  serve      {serve_url}     registry, records, timelines; {serve_url}/docs
  metrics    {"  ".join(metrics.values())}
  kafka      {kafka_bootstrap}
  postgres   psql "$(. {_shown(data_dir.path / "env")}; echo $DRM_POSTGRES_DSN)"
  logs       {_shown(data_dir.path / "logs")}

[bold]Send an event:[/]

{escape(curl(edge_url, sender_key))}

[bold]See it at the other end:[/]

{escape(tool)}
kcat -b {kafka_bootstrap} -t {topic} -C -o beginning{kcat_note}
"""


def curl(edge_url: str, sender_key: str) -> str:
    """A command to paste; each time it is run it sends another event."""
    event = (
        """[{"id": "'$(date +%s%N)'", "type": "device.measurement", "subject": "meter-7", """
        """"time": "'$(date -u +%FT%TZ)'", "data": {"temperature": 21.5, "humidity": 40}}]"""
    )
    return (
        f"curl -sS {edge_url}/v1/events -H 'Authorization: Bearer {sender_key}' "
        f"-H 'Content-Type: application/json' -d '{event}'"
    )


def _program() -> str:
    """Name this program as a shell here would find it."""
    if shutil.which("drm-ingest") is not None:
        return "drm-ingest"
    beside = Path(sys.executable).with_name("drm-ingest")
    return _shown(beside) if beside.exists() else f"{sys.executable} -m drm_ingest"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
