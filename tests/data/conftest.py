"""Small corpora, made up but with the quirks of real ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from smallbench.data import prepare as prepare_module
from smallbench.data import shards as shards_module
from smallbench.data import source as source_module
from smallbench.data.config import PrepareConfig
from smallbench.data.transfer import local_corpus
from smallbench.storage.config import StorageConfig
from smallbench.storage.local import LocalStorage

SMALL_CHUNKS, SMALL_COMMITS, SMALL_SHARDS = 3000, 9000, 4096
CONFIG = StorageConfig()
KINDS = {"wordpiece": 400, "bpe": 300}
"""The tokenizers of the corpora that travel, and their sizes."""

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


@pytest.fixture(scope="session")
def configs(corpus_file: Path) -> dict[str, PrepareConfig]:
    return {
        kind: PrepareConfig(
            corpus=str(corpus_file),
            tokenizer=kind,
            vocab_size=size,
            sequence_length=32,
            eval_fraction=0.1,
            min_characters=60,
        )
        for kind, size in KINDS.items()
    }


@pytest.fixture(scope="session")
def prepared(configs, tmp_path_factory) -> dict[str, Path]:
    """Directories of several shards, one for each kind of tokenizer."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "SHARD_BYTES", 16_384)
        for kind, config in configs.items():
            prepare_module.prepare(config, out=folder / kind, workers=1)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/corpus"


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Where the objects of `url` lie."""
    return tmp_path / "bucket" / "corpus"


@pytest.fixture
def pull(url: str, tmp_path: Path) -> Callable[[], Path]:
    return lambda: local_corpus(url, CONFIG, cache=tmp_path / "cache")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What storages did: ("put" | "upload" | "download" | "delete", key)."""
    done: list[tuple[str, str]] = []
    for name in ("put", "upload", "download", "delete"):
        real = getattr(LocalStorage, name)

        def spy(self, *args, _real=real, _name=name, **kwargs):
            key = args[1] if _name in {"upload"} else args[0]
            result = _real(self, *args, **kwargs)
            done.extend((_name, k) for k in (key if isinstance(key, list) else [key]))
            return result

        monkeypatch.setattr(LocalStorage, name, spy)
    return done
