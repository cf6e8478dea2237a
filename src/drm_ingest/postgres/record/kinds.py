"""The figures that a record has, by what its party is: each is a statement, and what that has as parameters."""

from dataclasses import dataclass

from drm_ingest.postgres.record import cared_for, own, serviced, sold, supplied, then, whole
from drm_ingest.postgres.record.figures import Asked
from drm_ingest.postgres.registry import attributes

PARTS_MAX = 100
"""Of each list: faults, visits, batches, customers, codes."""

_MAX = (PARTS_MAX,)

_EVERYBODYS: dict[str, Asked] = {"faults": (own.FAULTS, _MAX), "satisfaction": (own.SATISFACTION, ())}
_OF_KIND: dict[str, dict[str, Asked]] = {
    "vendor": {
        "sales": (sold.SALES, ()),
        "sold_satisfaction": (sold.SATISFACTION, ()),
        "sold_faults": (sold.FAULTS, _MAX),
    },
    "employee": {
        "customers": (cared_for.CUSTOMERS, _MAX),
        "customer_answers": (cared_for.SATISFACTION, _MAX),
        "customer_faults": (cared_for.FAULTS, _MAX),
    },
    "supplier": {
        "supplied": (supplied.DEVICES, ()),
        "batches": (supplied.BATCHES, _MAX),
        "supplied_faults": (supplied.FAULTS, _MAX),
    },
}


@dataclass(frozen=True, slots=True)
class Shown:
    """How much of a record is shown."""

    devices: int
    relations: int
    days: int
    around_visit_days: int


Questions = tuple[dict[str, Asked], dict[str, Asked]]
"""What is asked of everybody, and what only of this kind: each at once. All in one would be planned, and its plan kept
by each connection, once for each kind."""


def live(kind: str, shown: Shown) -> Questions:
    """Return all that are put together when they are read."""
    return _listed(shown, own.RELATIONS, own.DEVICES) | _EVERYBODYS, _of_kind(kind, shown)


def of_then(kind: str, shown: Shown, large: int) -> Questions:
    """Return the same of a large party as of another time."""
    everybodys, own_ = live(kind, shown)
    for asked in (everybodys, own_):
        for name in then.FIGURES.keys() & asked.keys():
            asked[name] = (then.FIGURES[name], (*asked[name][1], large))
    return everybodys | {"happened": (whole.HAPPENED, (large, shown.days))}, own_


def beside_totals(kind: str, shown: Shown, large: int) -> Questions:
    """Return those that totals do not have of a large party."""
    listed = _listed(shown, whole.RELATIONS, whole.DEVICES) | {"happened": (whole.HAPPENED, (large, shown.days))}
    if kind == "partner":
        around = (PARTS_MAX, shown.around_visit_days, large)
        return listed, {"newest_visits": (whole.VISITS, around), "visit_answers": (whole.VISIT_ANSWERS, around)}
    return listed, _of_kind(kind, shown) if kind == "employee" else {}


def _listed(shown: Shown, relations: str, devices: str) -> dict[str, Asked]:
    return {
        "attributes": (attributes.OF_PARTIES, ()),
        "listed_relations": (relations, (shown.relations,)),
        "listed_devices": (devices, (shown.devices,)),
    }


def _of_kind(kind: str, shown: Shown) -> dict[str, Asked]:
    if kind == "partner":
        around = (PARTS_MAX, shown.around_visit_days)
        return {
            "serviced": (serviced.DEVICES, ()),
            "newest_visits": (serviced.VISITS, around),
            "visit_answers": (serviced.SATISFACTION, around),
        }
    return dict(_OF_KIND.get(kind, {}))
