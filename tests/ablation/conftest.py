from tests.train.conftest import quick_runs  # noqa: F401 - a fixture
