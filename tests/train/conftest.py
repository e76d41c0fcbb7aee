"""A small prepared corpus, made by the real preparation from generated text."""

import random

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A prepared directory of some hundred rows of 32 tokens, with a held-out split."""
    from smallbench.data.config import PrepareConfig
    from smallbench.data.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubcdfglmnprst", k=draw.randint(2, 9))) for _ in range(300)]
    documents = []
    for _ in range(120):
        topic = draw.sample(words, 30)
        documents.append(". ".join(" ".join(draw.choices(topic, k=9)) for _ in range(12)) + ".")
    (folder / "text.txt").write_text("\n\n".join(documents))
    config = PrepareConfig(
        corpus=str(folder / "text.txt"), vocab_size=300, sequence_length=32, eval_fraction=0.1
    )
    prepare(config, out=folder / "prepared", workers=1)
    return folder / "prepared"
