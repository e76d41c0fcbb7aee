"""What tests of whole runs share: nothing is measured or drawn, and one run is everybody's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smallbench.pretraining import pretrain as module
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import outcome, tiny

REAL_PLOT = module.plot_loss


@pytest.fixture(autouse=True, scope="module")
def quick_runs() -> Iterator[None]:
    """Runs without the measurement of the peak FLOPs and the picture: two thirds of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "matrix_peak_flops", lambda *_: 1e12)
        patch.setattr(module, "plot_loss", lambda *_, **__: None)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture all the same."""
    monkeypatch.setattr(module, "plot_loss", REAL_PLOT)


@pytest.fixture(scope="session")
def whole(corpus, tmp_path_factory):
    """The outcome of an uninterrupted run of `tiny()`."""
    run_dir = tmp_path_factory.mktemp("whole")
    module.pretrain(tiny(), data=corpus, run_dir=run_dir)
    return outcome(run_dir)


@pytest.fixture(scope="session")
def uninterrupted(corpus, tmp_path_factory):
    """The outcome of an uninterrupted run of `tiny(**VALUES)`."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    module.pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir)
    return outcome(run_dir)
