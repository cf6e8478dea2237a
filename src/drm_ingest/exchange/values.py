"""What a column holds becomes what its field is: text, a number, a boolean, a time, or JSON.

Each of them raises ValueError, whose words follow the value; ArithmeticError and OverflowError of numbers and times.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

_TRUE, _FALSE = {"true", "t", "yes", "y", "1"}, {"false", "f", "no", "n", "0"}
Convert = Callable[[Any], Any]


def time_of(value: Any, format_: str | None, zone: ZoneInfo) -> str:
    """Return a time in RFC 3339 and UTC; one without an offset is of the zone, and a date its first moment."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        text = str(value).strip()
        try:
            value = datetime.strptime(text, format_) if format_ else datetime.fromisoformat(text)
        except ValueError:
            expected = f"of the format {format_}" if format_ else "of ISO 8601"
            raise ValueError(f"is no time {expected}") from None
    value = value if value.tzinfo else value.replace(tzinfo=zone)
    return str(value.astimezone(UTC).isoformat().replace("+00:00", "Z"))


def integer(scale: Decimal) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        scaled = _decimal(value) * scale
        rounded = scaled.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
        if scale == 1 and rounded != scaled:
            raise ValueError("is no whole number")
        return int(rounded)

    return convert


def number(scale: Decimal) -> Callable[[Any], int | float]:
    def convert(value: Any) -> int | float:
        scaled = _decimal(value) * scale
        return int(scaled) if scaled == scaled.to_integral_value() else float(scaled)

    return convert


def _decimal(value: Any) -> Decimal:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError("is no number") from None
    if not number.is_finite() or number.adjusted() > 30:
        raise ValueError("is no number that can be kept")
    return number


def boolean(value: Any) -> bool:
    folded = str(value).strip().casefold()
    if folded in _TRUE or folded in _FALSE:
        return folded in _TRUE
    raise ValueError("is neither true nor false")


def as_json(value: Any) -> Any:
    """Return a value as JSON has it: of TOML and Parquet times become text."""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return time_of(value, None, ZoneInfo("UTC"))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_json(part) for part in value]
    return value if isinstance(value, int | float | bool) or value is None else str(value)
