"""The protocol of trackers. A record is a flat, JSON-ready dictionary with `event` and `step`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

MetricsRecord = Mapping[str, Any]


class Tracker(Protocol):
    """Receives the records of a run in order."""

    def log(self, record: MetricsRecord) -> None:
        """Log one record."""
        ...
