"""Small corpora, made up but with the quirks of real ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from smallbench.data import prepare as prepare_module
from smallbench.data import shards as shards_module
from smallbench.data import source as source_module
from smallbench.data.config import PrepareConfig

SMALL_CHUNKS, SMALL_COMMITS, SMALL_SHARDS = 3000, 9000, 4096

WORDS = tuple(
    """the of and in model token reader writes café naïve Zürich 東京 data's e.g. (1984) don't we'll
    state-of-the-art encoder 3.14 unbelievable antidisestablishmentarianism [MASK] </s> “quoted”
    — №5 GPU""".split()  # noqa: SIM905
)


def make_documents(count: int, *, seed: int = 0) -> list[str]:
    """Documents of one to six paragraphs; about one in nine repeats an earlier one."""
    source = random.Random(seed)
    documents: list[str] = []
    for _ in range(count):
        if documents and source.random() < 0.11:
            documents.append(source.choice(documents))
            continue
        paragraphs = [
            " ".join(
                source.choice(WORDS) + source.choice(["", "", ",", str(source.randrange(999))])
                for _ in range(source.randint(3, 90))
            )
            for _ in range(source.randint(1, 6))
        ]
        documents.append("\n".join(paragraphs))
    return documents


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(400)


@pytest.fixture(scope="session")
def corpus_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="session")
def tokenizer_directory(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from smallbench.data.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer("wordpiece", documents, vocab_size=400).save(path)
    return path


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, commits and shards, even of a small corpus."""
    monkeypatch.setattr(source_module, "CHUNK_BYTES", SMALL_CHUNKS)
    monkeypatch.setattr(prepare_module, "COMMIT_BYTES", SMALL_COMMITS)
    monkeypatch.setattr(shards_module, "SHARD_BYTES", SMALL_SHARDS)


@pytest.fixture
def config(corpus_file: Path, tokenizer_directory: Path) -> PrepareConfig:
    return PrepareConfig(
        corpus=str(corpus_file),
        tokenizer=str(tokenizer_directory),
        sequence_length=32,
        eval_fraction=0.1,
        min_characters=60,
    )
