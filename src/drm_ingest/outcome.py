"""What became of an event: a closed list, and the label of `drm_events_total`.

In every process, always: `drm_events_received_total` = the sum of `drm_events_total` + `drm_events_in_flight`.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """Exactly one for each event that a process receives."""

    # edge
    ACCEPTED = "accepted"  # durable in the ingress topic, whether its sender heard of it or not
    REJECTED = "rejected"  # refused in the answer for a reason no retry changes; kept nowhere
    UNKNOWN = "unknown"  # not acknowledged in time, or no room: answered 503; it may or may not be durable

    # enrich
    ENRICHED = "enriched"  # durable in its family's topic

    # attach
    ATTACHED = "attached"  # committed in Postgres

    # enrich and attach
    DUPLICATE = "duplicate"  # the same event again; stored once, by the first
    DEAD_LETTER = "dead_letter"  # durable in the dead letters, with its reason
    RETRIED = "retried"  # the batch failed; the event is read again and counted again
