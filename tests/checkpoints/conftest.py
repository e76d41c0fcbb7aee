from tests.pretraining.conftest import quick_runs  # noqa: F401 - a fixture
