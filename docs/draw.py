"""Draw the pictures of docs/relations.md: `make docs`; a test holds them to the schema and to what the story made.

    tables.svg     the tables with their keys, as migrations/schema.sql has them
    household.svg  who held which role when, in the end
    two-times.svg  one relation in two times: how it was corrected

The last two are drawn from pictures/household.json, which the story writes when it is run (`make story`).
"""

import json
from pathlib import Path

from docs.draw_tables import tables
from docs.draw_times import household, two_times

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
SCHEMA = DOCS.parent / "migrations/schema.sql"


def drawn(**options: bool) -> dict[str, str]:
    """Return each picture by its name."""
    told = json.loads((PICTURES / "household.json").read_text())
    return {
        "tables.svg": tables(SCHEMA.read_text(), **options),
        "household.svg": household(told, **options),
        "two-times.svg": two_times(told, **options),
    }


if __name__ == "__main__":
    for picture, drawing in drawn().items():
        (PICTURES / picture).write_text(drawing)
