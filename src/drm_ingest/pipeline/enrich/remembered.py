"""The events that are in their topic already, as far as memory goes: a sender's retry of one is not written twice."""


class Remembered:
    """Identities and content hashes of one partition's latest events, bounded (give or take a batch).

    Two generations: when the younger is full, the older is dropped whole. That keeps between half of the bound and all
    of it, without the bookkeeping of an exact order at every event.
    """

    __slots__ = ("_half", "_older", "_younger")

    def __init__(self, events_max: int) -> None:
        self._half = max(1, events_max // 2)
        self._younger: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._younger) + len(self._older)

    def holds(self, identity: str, content_hash: bytes) -> bool:
        """Whether this very event, with this content, is in its topic."""
        known = self._younger.get(identity) or self._older.get(identity)
        return known is not None and known == content_hash

    def add(self, acknowledged: dict[str, bytes]) -> None:
        """Remember events that Kafka has acknowledged, in order: identity → content hash."""
        self._younger.update(acknowledged)
        if len(self._younger) >= self._half:
            self._older, self._younger = self._younger, {}
