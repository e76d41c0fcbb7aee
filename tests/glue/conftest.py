"""Shared fixtures of the GLUE tests."""

import pytest
import torch

from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny random encoder with a WordPiece tokenizer of single letters, saved by transformers."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    directory = tmp_path_factory.mktemp("model")
    letters = [prefix + chr(c) for c in range(97, 123) for prefix in ("", "##")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *".,?'0123456789-"]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def glue(tmp_path_factory):
    """All tasks in the official layout, with generated sentences."""
    directory = tmp_path_factory.mktemp("glue")
    write_sample_glue(directory)
    return directory


@pytest.fixture(scope="session")
def stsb(glue):
    """Its predictions are numbers, which show any difference of two models."""
    return load_task(TASKS["stsb"], glue)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function from a class's name to its model as transformers saves it, made once."""
    from transformers.utils import logging

    from tests.glue import foreign

    made = {}

    def get(name):
        if name not in made:
            made[name] = foreign.build(name, tmp_path_factory.mktemp("saved") / "m")
        return made[name]

    logging.disable_progress_bar()
    return get
