"""What tests of whole runs share: nothing is measured or drawn, and one run is everybody's."""

from __future__ import annotations

import pytest

from smallbench.pretraining import pretrain as module
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import outcome, tiny

REAL_PLOT = module.plot_loss


@pytest.fixture(autouse=True, scope="module")
def _quick_runs(quick_runs: None) -> None:
    pass


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
