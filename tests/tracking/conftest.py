import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_runs(quick_runs: None) -> None:
    pass
