"""A corpus → packed chunks, by several processes, for `prepare` to write."""

from __future__ import annotations

import heapq
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol, TypeVar

from smallbench.data.cleaning import HASH_RANGE
from smallbench.data.config import PrepareConfig, is_trained
from smallbench.data.corpus import Corpus, open_corpus
from smallbench.data.meter import Meter
from smallbench.data.packing import PackedChunk, load_tokenizer, pack_chunk, sample_chunk
from smallbench.data.skips import printable
from smallbench.data.tokenizer import AWKWARD_TEXTS, Tokenizer, different_ids, train_tokenizer
from smallbench.errors import ConfigError, DataError, UnavailableError
from smallbench.stop import Stop

T = TypeVar("T")
R = TypeVar("R")

_TASKS_PER_WORKER = 2  # one in work, one waiting; more would only cost memory

CHUNK_BYTES = 4 << 20
"""Raw text that a worker gets at a time."""


def corpus_of(config: PrepareConfig, *, out: Path) -> Corpus:
    """Open the corpus of `config`, without files that this command writes inside it.

    Raises `ConfigError` if all of it is inside `out`.
    """
    folder, target = Path(config.corpus).resolve(), out.resolve()
    if folder.is_dir() and target in (folder, *folder.parents):
        what = "is the corpus itself" if target == folder else "contains the corpus"
        raise ConfigError(f"--out={printable(out)} {what}; choose another --out")
    shares = out.with_name(f"{out.name}.shares")
    return open_corpus(config.corpus, config, exclude=(out, shares))


class TextSample:
    """Distinct texts in the order of their hashes, as many as fit into `limit_bytes`.

    It is a uniform sample, whatever the order of the documents and the number of workers.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.num_bytes = 0
        self.bound = HASH_RANGE
        """Hashes from here on are certainly not in the sample."""
        self._limit_bytes = limit_bytes
        self._heap: list[tuple[int, bytes]] = []  # largest hash first, as its negative
        self._hashes: set[int] = set()

    def add(self, hash_value: int, text: bytes) -> None:
        """Add `text` if it belongs to the sample; texts that no longer fit are dropped."""
        if hash_value >= self.bound or hash_value in self._hashes:
            return
        heapq.heappush(self._heap, (-hash_value, text))
        self._hashes.add(hash_value)
        self.num_bytes += len(text)
        while self.num_bytes > self._limit_bytes and len(self._heap) > 1:
            negative, dropped = heapq.heappop(self._heap)
            self.num_bytes -= len(dropped)
            self._hashes.discard(-negative)
            self.bound = -negative

    def __len__(self) -> int:
        return len(self._heap)

    def items(self) -> Iterator[tuple[int, bytes]]:
        """(hash, text) in the order of the hashes."""
        for negative, text in sorted(self._heap, reverse=True):
            yield -negative, text

    def __iter__(self) -> Iterator[str]:
        for _, text in self.items():
            yield text.decode()


class Source(Protocol):
    """Where a run's tokenizer and packed documents come from, in the corpus's order."""

    corpus: Corpus
    """Its size, how far the last call of `packed` has read, and what could not be read."""

    def tokenizer(self) -> Tokenizer:
        """Return the given one, or one that is trained on a sample."""

    def packed(self, folder: Path, *, skip: int) -> Generator[PackedChunk, None, None]:
        """Yield the chunks behind the first `skip` documents, by the tokenizer in `folder`."""


@dataclass
class CorpusSource:
    """A corpus that is read, cleaned and tokenised here, by several processes."""

    config: PrepareConfig
    corpus: Corpus
    workers: int
    stop: Stop

    def tokenizer(self) -> Tokenizer:
        """Return the given one, or one that is trained on a sample."""
        if not is_trained(self.config.tokenizer):
            return given_tokenizer(self.config)
        return tokenizer_from(self.config, self.sample())

    def sample(self) -> TextSample:
        """Return the texts to train a tokenizer on."""
        sample = TextSample(self.config.tokenizer_sample_bytes)
        tasks = ((chunk, sample.bound) for chunk in self._chunks(skip=0))
        choose = partial(sample_chunk, config=self.config, extract=self.corpus.extract)
        results = ordered_map(choose, tasks, workers=self.workers)
        meter = Meter("sampling for a tokenizer", self.corpus.size_bytes)
        with closing(results), closing(meter):
            for num_documents, num_bytes, texts in results:
                for hash_value, text in texts:
                    sample.add(hash_value, text)
                meter.update(num_documents, num_bytes, self.corpus.position_bytes)
                self.stop.raise_if_asked(f"sampling {self.config.corpus} for the tokenizer")
        return sample

    def packed(self, folder: Path, *, skip: int) -> Generator[PackedChunk, None, None]:
        """Yield the chunks behind the first `skip` documents, by the tokenizer in `folder`."""
        pack = partial(pack_chunk, config=self.config, extract=self.corpus.extract, folder=folder)
        try:
            yield from ordered_map(pack, self._chunks(skip=skip), workers=self.workers)
        finally:
            load_tokenizer.cache_clear()

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
    """Return the message for a corpus in which all documents are too short."""
    return (
        f"no document of {config.corpus} is left to train on: each is shorter than "
        f"--min_characters={config.min_characters}, or held out; lower --min_characters, or set "
        "--documents"
    )


def ordered_map(
    function: Callable[[T], R], tasks: Iterable[T], *, workers: int
) -> Generator[R, None, None]:
    """`map(function, tasks)` by `workers` processes; with one worker, in this process.

    `tasks` is only read as far as the work goes. `function` must be picklable. Raises
    `UnavailableError` when a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[R]] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_become_worker)
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= workers * _TASKS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a worker process was killed (out of memory?); run the same command again, "
            f"with fewer than --workers={workers}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _become_worker() -> None:
    # The parent alone answers Ctrl-C and SIGTERM, which reach the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # One thread a worker: the workers fill the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the parent: a killed parent closes no queue, and workers would wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
