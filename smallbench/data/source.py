"""A corpus → packed chunks, by several processes, for `prepare` to write."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from smallbench.data.config import PrepareConfig, is_trained
from smallbench.data.corpus import Corpus, open_corpus
from smallbench.data.meter import Meter
from smallbench.data.packing import PackedChunk, TextRules, pack_chunk
from smallbench.data.parity import AWKWARD_TEXTS, different_ids
from smallbench.data.readers import ReadOptions
from smallbench.data.sampling import TextSample, sample_chunk
from smallbench.data.skips import Skips
from smallbench.data.tokenizer import Tokenizer, train_tokenizer
from smallbench.data.workers import ordered_map
from smallbench.errors import DataError
from smallbench.stop import Stop

CHUNK_BYTES = 4 << 20
"""Raw text that a worker gets at a time."""


def read_options(config: PrepareConfig) -> ReadOptions:
    """Return the options of `config` that the readers need."""
    return ReadOptions(config.documents, config.text_field, config.encoding)


def corpus_of(config: PrepareConfig, *, out: Path) -> Corpus:
    """Open the corpus of `config`, without files that this command writes inside it."""
    shares = out.with_name(f"{out.name}.shares")
    return open_corpus(config.corpus, read_options(config), exclude=(out, shares))


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """Return the one tokenizer of this process, with the words that it has cached."""
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.fingerprint == fingerprint
    return tokenizer


def _pack(
    documents: list[bytes],
    *,
    rules: TextRules,
    folder: Path,
    fingerprint: str,
    sequence_length: int,
) -> PackedChunk:
    tokenizer = _load_tokenizer(folder, fingerprint)
    return pack_chunk(documents, rules=rules, tokenizer=tokenizer, sequence_length=sequence_length)


def _sample(
    task: tuple[list[bytes], int], *, rules: TextRules
) -> tuple[int, int, list[tuple[int, bytes]]]:
    """Return the numbers of documents and bytes, and the texts with a hash under the bound."""
    documents, bound = task
    sample = sample_chunk(documents, rules=rules, bound=bound)
    return len(documents), sum(map(len, documents)), sample


class Source(Protocol):
    """Where a run's tokenizer and packed documents come from, in the corpus's order."""

    size_bytes: int

    @property
    def position_bytes(self) -> int:
        """How far the last call of `packed` has read."""
        ...

    @property
    def skips(self) -> Skips:
        """What could not be read."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Return the given one, or one that is trained on a sample."""
        ...

    def packed(
        self, folder: Path, tokenizer: Tokenizer, *, skip: int
    ) -> Generator[PackedChunk, None, None]:
        """Yield the packed chunks of all documents after the first `skip`."""
        ...


@dataclass
class CorpusSource:
    """A corpus that is read, cleaned and tokenised here, by several processes."""

    config: PrepareConfig
    corpus: Corpus
    workers: int
    stop: Stop

    def __post_init__(self) -> None:
        config, corpus = self.config, self.corpus
        self.rules = TextRules(config.min_characters, config.eval_fraction, corpus.extract)
        self.size_bytes = corpus.size_bytes

    @property
    def position_bytes(self) -> int:
        """How far the corpus is read."""
        return self.corpus.position_bytes

    @property
    def skips(self) -> Skips:
        """What of it could not be read."""
        return self.corpus.skips

    def tokenizer(self) -> Tokenizer:
        """Return the given one, or one that is trained on a sample."""
        if not is_trained(self.config.tokenizer):
            return given_tokenizer(self.config)
        return tokenizer_from(self.config, self.sample())

    def sample(self) -> TextSample:
        """Return the texts to train a tokenizer on."""
        sample = TextSample(self.config.tokenizer_sample_bytes)
        tasks = ((chunk, sample.bound) for chunk in self._chunks(skip=0))
        results = ordered_map(partial(_sample, rules=self.rules), tasks, workers=self.workers)
        with closing(results), Meter("sampling for a tokenizer", self.size_bytes) as meter:
            for num_documents, num_bytes, texts in results:
                for hash_value, text in texts:
                    sample.add(hash_value, text)
                meter.update(
                    num_documents=num_documents,
                    num_bytes=num_bytes,
                    position_bytes=self.position_bytes,
                )
                self.stop.raise_if_asked(f"sampling {self.config.corpus} for the tokenizer")
        return sample

    def packed(
        self, folder: Path, tokenizer: Tokenizer, *, skip: int
    ) -> Generator[PackedChunk, None, None]:
        """Yield the packed chunks of all documents after the first `skip`."""
        pack = partial(
            _pack,
            rules=self.rules,
            folder=folder,
            fingerprint=tokenizer.fingerprint,
            sequence_length=self.config.sequence_length,
        )
        try:
            yield from ordered_map(pack, self._chunks(skip=skip), workers=self.workers)
        finally:
            _load_tokenizer.cache_clear()

    def _chunks(self, *, skip: int) -> Iterator[list[bytes]]:
        """Documents after the first `skip`, in lists of about `CHUNK_BYTES`."""
        documents = islice(self.corpus.documents(), skip, self.config.max_documents)
        chunk: list[bytes] = []
        num_bytes = 0
        for document in documents:
            chunk.append(document)
            num_bytes += len(document)
            if num_bytes >= CHUNK_BYTES:
                yield chunk
                chunk, num_bytes = [], 0
        if chunk:
            yield chunk


def given_tokenizer(config: PrepareConfig) -> Tokenizer:
    """Load the one that `config` names by its path.

    Raises `DataError` if it is not usable, or if transformers would give other ids, which an
    export would find out only after the training.
    """
    try:
        path = Path(config.tokenizer).expanduser()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"--tokenizer={config.tokenizer}: {error}") from None
    tokenizer = Tokenizer.load(path)
    try:
        tokenizer.encode_batch(AWKWARD_TEXTS)
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path} cannot encode every text ({error})") from error
    if not tokenizer.is_canonical:
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            exported = AutoTokenizer.from_pretrained(folder)
        difference = different_ids(tokenizer, exported, AWKWARD_TEXTS)
        if difference:
            raise DataError(f"{path} cannot be exported: {difference}; choose another tokenizer")
    return tokenizer


def tokenizer_from(config: PrepareConfig, sample: TextSample) -> Tokenizer:
    """Return the one that is trained on `sample`; raises `DataError` if it is empty."""
    if not len(sample):
        raise DataError(nothing_kept(config))
    print(f"training a {config.tokenizer} tokenizer on {sample.num_bytes / 1e6:.1f} MB")
    return train_tokenizer(config.tokenizer, sample, vocab_size=config.vocab_size)


def nothing_kept(config: PrepareConfig) -> str:
    """Say that all documents are too short."""
    return (
        f"no document of {config.corpus} is left to train on; expected some of at least "
        f"--min_characters={config.min_characters}"
    )
