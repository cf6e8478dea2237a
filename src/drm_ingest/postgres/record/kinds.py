"""What the record of a vendor, a partner, an employee or a supplier has beside everybody's: rows by name."""

from collections.abc import Awaitable, Callable, Mapping

from drm_ingest.postgres.record import cared_for, serviced, sold, supplied, whole
from drm_ingest.postgres.record.figures import Rows
from drm_ingest.postgres.record.reading import PARTS_MAX, Reading


async def part(record: Reading, kind: str, around_visit_days: int) -> Mapping[str, Rows]:
    """Return the part that a party of this kind has."""
    if kind == "partner":
        return await _of_partner(record, around_visit_days)
    return await _OTHERS[kind](record)


async def _of_customer(record: Reading) -> Mapping[str, Rows]:
    return {}


async def _of_vendor(record: Reading) -> Mapping[str, Rows]:
    return {
        "sales": await record.figure("sales", sold.SALES),
        "satisfaction": await record.figure("sold_satisfaction", sold.SATISFACTION),
        "faults": await record.figure("sold_faults", sold.FAULTS, PARTS_MAX),
    }


async def _of_partner(record: Reading, around_visit_days: int) -> Mapping[str, Rows]:
    devices = await record.figure("serviced", serviced.DEVICES)
    around = (PARTS_MAX, around_visit_days)
    if record.figures is None:
        return {
            "devices": devices,
            "visits": await record.live(serviced.VISITS, *around),
            "satisfaction": await record.live(serviced.SATISFACTION, *around),
        }
    # The newest visits are all on these devices; what was around them is read live.
    on = [row["subject"] for row in await record.db.fetch(whole.VISITED, record.large, PARTS_MAX)]
    return {
        "devices": devices,
        "visits": await record.live(serviced.newest("$6"), *around, on),
        "satisfaction": await record.live(serviced.satisfaction("$6"), *around, on),
        "visited": record.figures["visits"],
    }


async def _of_employee(record: Reading) -> Mapping[str, Rows]:
    customers = await record.live(cared_for.CUSTOMERS, PARTS_MAX)
    listed = [row["id"] for row in customers]
    return {
        "customers": customers,
        "satisfaction": await record.live(cared_for.SATISFACTION, listed),
        "faults": await record.live(cared_for.FAULTS, listed),
    }


async def _of_supplier(record: Reading) -> Mapping[str, Rows]:
    return {
        "devices": await record.figure("supplied", supplied.DEVICES),
        "batches": await record.figure("batches", supplied.BATCHES, PARTS_MAX),
        "faults": await record.figure("supplied_faults", supplied.FAULTS, PARTS_MAX),
    }


_OTHERS: Mapping[str, Callable[[Reading], Awaitable[Mapping[str, Rows]]]] = {
    "customer": _of_customer,
    "vendor": _of_vendor,
    "employee": _of_employee,
    "supplier": _of_supplier,
}
