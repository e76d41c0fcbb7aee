"""What several tests of storages need."""

from __future__ import annotations

import pytest

from smallbench import retry
from smallbench.storage import s3


@pytest.fixture
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts and short pauses."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the smallest that S3 accepts
    monkeypatch.setattr(retry, "DELAYS_SECONDS", (0.01, 0.02))
