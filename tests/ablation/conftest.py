"""A tiny ablation, and its tables as one process makes them."""

import pytest

from smallbench.jobs.ablate import Options, run
from smallbench.pretraining import pretrain as module

SMALL = (
    "sequence_length=32", "model.hidden_size=32", "model.intermediate_size=64",
    "model.embedding_size=16", "model.num_hidden_layers=1", "train.global_batch_size=8",
    "train.num_eval_rows=16",
)  # fmt: skip
VARIANTS = ("bert-tiny", "deberta-tiny")
FLOPS = 6e7


@pytest.fixture(autouse=True, scope="module")
def _quick_runs(quick_runs: None) -> None:
    pass


def flags(corpus, out, **more):
    values = {"data": corpus, "flops": FLOPS, "seeds": "1,2", "out": out, **more}
    values["set"] = ",".join((*SMALL, *values.pop("also", ())))
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="session")
def whole(corpus, tmp_path_factory):
    """An ablation that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plot_loss", lambda *_, **__: None)
        run(
            Options(
                variants=VARIANTS, data=str(corpus), flops=FLOPS, seeds=(1, 2), out=out, set=SMALL
            )
        )
    return out
