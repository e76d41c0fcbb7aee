"""Runs of `pretrain` on a disk that fails on request: a process that is started once.

    LD_PRELOAD=disk_faults.so python -m tests.pretraining.faulty_disk CORPUS

Each line on its standard input is a JSON object {run_dir, storage, values, environment}; the answer
is {code, said}: the exit code of the console script and its error output. Each run is a fork, so
that the faults end with it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from smallbench import retry
from smallbench.jobs import cli
from smallbench.pretraining import pretrain as pretrain_module
from smallbench.pretraining.pretrain import pretrain
from smallbench.train.config import DurabilityConfig
from tests.pretraining.test_pretrain import tiny


def run(corpus: Path, case: dict[str, Any]) -> None:
    """One run in this process; never returns."""
    os.environ.update(case["environment"])

    def dispatch(_: list[str]) -> None:
        pretrain(
            tiny(**case["values"]),
            data=corpus,
            run_dir=Path(case["run_dir"]),
            durability=DurabilityConfig(
                storage=case["storage"],
                lease_seconds=0.2,
                final_sync_minutes=1 / 60 if case["environment"] else 5,
            ),
        )

    cli._dispatch = dispatch
    try:
        code = int(cli.main(["pretrain"]))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    corpus = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    retry.DELAYS_SECONDS = (0.01, 0.01)
    retry.LONGEST_PAUSE_SECONDS = 0.05
    pretrain_module.matrix_peak_flops = lambda *_: 1e12
    pretrain_module.plot_loss = lambda *_, **__: None
    with tempfile.TemporaryDirectory() as folder:  # so that no fork imports what a run needs
        pretrain(tiny(train__max_steps=1), data=corpus, run_dir=Path(folder))
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            if not (child := os.fork()):
                os.dup2(said.fileno(), 2)
                run(corpus, json.loads(line))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            answer = {"code": code, "said": said.read().decode()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
