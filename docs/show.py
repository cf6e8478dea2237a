"""Show what matters of an answer of serve: `curl … | python docs/show.py name satisfaction.csat.score`.

Each field is a line, and behind `related:` those of each item are; a single field is its value alone, for a variable.
A refusal is shown as one: its status, its code and what to do.
"""

import json
import sys
from typing import Any


def value(of: Any, path: str) -> Any:
    """Return a field by its path, as in `sales.faults.open`; None where there is none; of a list that of each item."""
    name, _, rest = path.partition(".")
    if isinstance(of, list):
        each = [value(item, path) for item in of]
        return each[0] if len(each) == 1 else each
    found = of.get(name) if isinstance(of, dict) else None
    return value(found, rest) if rest else found


def text(what: Any) -> str:
    return what if isinstance(what, str) else json.dumps(what, ensure_ascii=False)


def shown(answer: Any, fields: list[str]) -> list[str]:
    """Return the lines that show these fields of an answer."""
    if "detail" in answer and isinstance(answer.get("status"), int):
        return [f"{answer['status']} {answer['code']}: {answer['detail']}"]
    if fields and fields[0].endswith(":"):
        rows = [[text(value(item, field)) for field in fields[1:]] for item in value(answer, fields[0][:-1]) or ()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] or ["none"]
    if len(fields) == 1:
        return [text(value(answer, fields[0]))]
    width = max(map(len, fields), default=0)
    return [f"{field:<{width}}  {text(value(answer, field))}" for field in fields]


if __name__ == "__main__":
    print(*shown(json.load(sys.stdin), sys.argv[1:]), sep="\n")  # noqa: T201  printing is its work
