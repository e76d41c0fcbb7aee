"""The console output of a run: a progress bar on a terminal, otherwise JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

from tqdm import tqdm

from smallbench.tracking.base import MetricsRecord


class Console:
    """A progress bar with ETA if stderr is a terminal, else one JSON line a record on stdout."""

    def __init__(self, *, num_steps: int | None, first_step: int, description: str) -> None:
        """`num_steps` is None if hours or FLOPs end the run."""
        self._shows_eta = num_steps is None  # else the bar does
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=num_steps, initial=first_step, desc=description, unit="step",
                dynamic_ncols=True, smoothing=0.1,
            )  # fmt: skip

    def log(self, record: MetricsRecord) -> None:
        """Show one record."""
        if self._bar is None:
            print(json.dumps(dict(record)), flush=True)
        elif record["event"] == "train":
            self._bar.set_postfix_str(
                f"loss {_show(record['loss'], '.3f')}, "
                f"{_show(record['tokens_per_second'], ',.0f')} tokens/s, "
                f"MFU {_show(record['mfu'], '.0%')}, lr {_show(record['learning_rate'], '.2e')}"
                + (f", {record['eta_seconds'] / 3600:.2f} h left" if self._shows_eta else ""),
                refresh=False,
            )
            self._bar.update(record["step"] - self._bar.n)
        else:
            numbers = ", ".join(
                f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float)
            )
            self._bar.write(f"step {record['step']:,} {record['event']}: {numbers}", sys.stderr)

    def close(self) -> None:
        """Close the bar; its last state stays on the screen."""
        if self._bar is not None:
            self._bar.close()


def _show(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)
