"""How many processes may work at once."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """Return the cores that this process may use, which a container may have made fewer."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
