"""Write the tables that the code knows into the documents: `make docs`; a test holds them to it."""

import re
from pathlib import Path

from pydantic import SecretStr

from drm_ingest.errors import PROBLEMS, EventCode
from drm_ingest.metrics import DECLARED, PROCESSES
from drm_ingest.settings import Settings

DOCS = Path(__file__).parent


def settings() -> str:
    """Return every setting with its default and meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "" if default in (None, "") else f"`{default}`"
        lines.append(f"| `DRM_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines)


def errors() -> str:
    """Return every code of a refused request, and of a refused or remarkable event."""
    lines = ["| status | code | meaning | again? |", "|---|---|---|---|"]
    lines += [
        f"| {problem.status} | `{problem.code}` | {problem.title} | {'yes' if problem.retry else 'no'} |"
        for problem in PROBLEMS.values()
    ]
    lines += ["", "| code | what to do |", "|---|---|"]
    lines += [f"| `{code}` | {code.remedy} |" for code in EventCode]
    return "\n".join(lines)


def metrics() -> str:
    """Return every metric as it is exported, with the processes that have it."""
    lines = ["| name | type | labels | meaning | processes |", "|---|---|---|---|---|"]
    lines.append("| `drm_process_info` | gauge | `process` | Which process this is; always 1. | all |")
    for metric in DECLARED:
        name = metric.name + ("_total" if metric.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        processes = "all" if metric.processes == PROCESSES else ", ".join(metric.processes)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.text} | {processes} |")
    return "\n".join(lines)


TABLES = {"settings.md": settings, "errors.md": errors, "metrics.md": metrics}


def written(name: str) -> str:
    """Return a document with its table as it must be: behind the line `<!-- made by docs/tables.py -->`, to the end."""
    text = (DOCS / name).read_text()
    mark = "<!-- made by docs/tables.py -->\n"
    head, found, _ = re.split(f"({mark})", text, maxsplit=1)
    return f"{head}{found}\n{TABLES[name]()}\n"


if __name__ == "__main__":
    for document in TABLES:
        (DOCS / document).write_text(written(document))
