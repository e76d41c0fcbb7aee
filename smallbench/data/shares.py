"""One corpus by several machines: each packs its share of the files, the first joins the shares.

What they hand each other lies in `OUT.shares/`, in a bucket or a directory that all of them see:

    options.json                                the command, which must be the same for all
    sample-0002-of-0008.json                    texts of a share to train the tokenizer on
    tokenizer.json                              trained on the samples of all shares
    packed-0002-of-0008/000000012345.npz        a chunk as the workers packed it; its name says how
                                                many documents of the share end with it
    done-0002-of-0008.json                      what of the share could not be read

The first share writes rows from these chunks as a single machine does from its own workers', and so
with the same bytes; then the folder is deleted. A share that is started again goes on behind its
last chunk. A corpus in a bucket is fetched share by share.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from smallbench.cores import available_cpus
from smallbench.data.config import PrepareConfig, is_trained
from smallbench.data.corpus import Corpus, deal_in_runs, open_corpus, share_of
from smallbench.data.packing import PackedChunk
from smallbench.data.prepare import (
    already_published,
    options_of,
    prepare,
    prepare_remote,
    refuse_other_options,
)
from smallbench.data.readers import is_hidden_file
from smallbench.data.shards import Manifest
from smallbench.data.skips import Skips
from smallbench.data.source import (
    CorpusSource,
    TextSample,
    corpus_of,
    given_tokenizer,
    tokenizer_from,
)
from smallbench.data.tokenizer import Tokenizer
from smallbench.data.transfer import cache_directory
from smallbench.errors import ConfigError, DataError, InterruptedRunError
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from smallbench.storage.base import AlreadyExistsError, Storage, is_remote
from smallbench.storage.config import StorageConfig

POLL_SECONDS = 5.0
"""Seconds between two checks of the other shares."""

_OPTIONS, _TOKENIZER = "options.json", "tokenizer.json"


def prepare_share(
    config: PrepareConfig,
    out: str,
    number: int,
    count: int,
    *,
    storage: StorageConfig,
    cache: Path | None = None,
    workers: int | None = None,
    stop: Stop = NEVER,
) -> Manifest | None:
    """Do share `number` (from 1) of `count`; the first one also waits for the others and joins all.

    Returns the manifest of the complete corpus, or None for a share that has only done its part.
    Raises the errors of `prepare`, and `ConfigError` if the shares have different commands.
    """
    if config.max_documents is not None:
        raise ConfigError(
            "max_documents counts from the corpus's beginning, where only one share is; leave it "
            "out, or prepare on one machine"
        )
    place, shares = (open_storage(url, storage) for url in (out, f"{out.rstrip('/')}.shares"))
    if (manifest := already_published(place, config)) is not None:
        if number == 1:  # remains of a first share that was stopped after the end of the corpus
            _delete(shares)
        return manifest
    name = f"{number}-of-{count}-{hashlib.sha256(shares.url.encode()).hexdigest()[:16]}"
    work = cache_directory(cache) / "shares" / name
    part, size_bytes = _corpus(config, out, work, storage, number, count)
    options = {**options_of(config), "shares": count, "source_bytes": size_bytes}
    try:
        shares.put(_OPTIONS, json.dumps(options).encode(), only_new=True)
    except AlreadyExistsError:
        refuse_other_options(shares.url, json.loads(shares.get(_OPTIONS)), options)
    reader = CorpusSource(config, part, workers or available_cpus(), stop)
    share = _Share(reader, shares, number, count, work)
    share.pack()
    joined: Manifest | None = None
    if number == 1:
        share.corpus = share.whole_corpus(size_bytes)
        if is_remote(out):
            joined = prepare_remote(
                config, out, storage=storage, cache=cache, stop=stop, source=share
            )
        else:
            joined = prepare(config, out=Path(out), stop=stop, source=share)
        _delete(shares)
    shutil.rmtree(work, ignore_errors=True)
    return joined


def _corpus(
    config: PrepareConfig, out: str, work: Path, storage: StorageConfig, number: int, count: int
) -> tuple[Corpus, int]:
    """A share of the corpus, its files fetched if they are in a bucket; and the size of all."""
    source = config.corpus
    if not is_remote(source):
        corpus = corpus_of(config, out=Path(out))
        return share_of(corpus, number=number, count=count), corpus.size_bytes
    place = open_storage(source, storage)
    sizes = {stored.key: stored.num_bytes for stored in place.list()}
    if not sizes:  # one object, not a folder of them
        parent, _, key = source.rstrip("/").rpartition("/")
        place = open_storage(parent, storage)
        size = place.num_bytes(key)
        sizes = {} if size is None else {key: size}
    # What this command writes inside its corpus is not text.
    own = tuple(
        f"{url.removeprefix(f'{place.url}/')}/"
        for url in (out.rstrip("/"), f"{out.rstrip('/')}.shares")
    )
    # In the order of paths, as in a local folder: `a/b.txt` before `a.txt`.
    names = sorted(
        (key for key in sizes if not is_hidden_file(key.split("/")) and not key.startswith(own)),
        key=Path,
    )
    if not names:
        raise DataError(f"{place.url} does not exist or has no file; expected files of text")
    dealt = deal_in_runs([sizes[name] for name in names], count)
    mine = [name for name, share in zip(names, dealt, strict=True) if share == number]
    root = work / "corpus"
    for name in mine:
        path = root / name
        if not (path.is_file() and path.stat().st_size == sizes[name]):
            path.parent.mkdir(parents=True, exist_ok=True)
            place.download(name, path)
    size_bytes = sum(sizes[name] for name in names)
    if not mine:
        return Corpus("", is_whole=False), size_bytes
    corpus = open_corpus(
        str(root) if len(names) > 1 else str(root / mine[0]),
        config,
        may_be_empty=mine != names,
    )
    return replace(corpus, is_whole=mine == names), size_bytes


def _delete(shares: Storage) -> None:
    """Delete the options last, so that a restarted share still finds its part."""
    keys = [stored.key for stored in shares.list()]
    shares.delete([key for key in keys if key != _OPTIONS])
    shares.delete([key for key in keys if key == _OPTIONS])


@dataclass
class _Share:
    """One part of the work, and the place where all parts meet; for the first one, a `Source`."""

    reader: CorpusSource
    shares: Storage
    number: int
    count: int
    work: Path
    corpus: Corpus = field(default_factory=lambda: Corpus(""))

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.config = self.reader.config

    def name(self, kind: str, number: int | None = None) -> str:
        return f"{kind}-{number or self.number:04d}-of-{self.count:04d}"

    def wait(self, what: str, is_there: Callable[[], bool]) -> None:
        if is_there():
            return
        print(f"waiting for {what}, in {self.shares.url}", file=sys.stderr, flush=True)
        while not is_there():
            self.reader.stop.raise_if_asked(f"waiting for {what}")
            time.sleep(POLL_SECONDS)

    def tokenizer(self) -> Tokenizer:
        """Return the given tokenizer, or the one that is trained on the samples of all shares."""
        if not is_trained(self.config.tokenizer):
            return given_tokenizer(self.config)
        if not self._has(_TOKENIZER):
            if not self._has(f"{self.name('sample')}.json"):
                sample = [(value, text.decode()) for value, text in self.reader.sample().items()]
                self.shares.put(f"{self.name('sample')}.json", json.dumps(sample).encode())
            if self.number == 1:
                self.wait(
                    "the others' samples", lambda: len(self.shares.list("sample-")) == self.count
                )
                self._train()
            else:
                self.wait("the tokenizer", lambda: self._has(_TOKENIZER))
        path = self.work / _TOKENIZER
        self.shares.download(_TOKENIZER, path)
        return Tokenizer.load(path)

    def _train(self) -> None:
        sample = TextSample(self.config.tokenizer_sample_bytes)
        for number in range(1, self.count + 1):
            for value, text in json.loads(self.shares.get(f"{self.name('sample', number)}.json")):
                sample.add(value, text.encode())
        folder = self.work / "trained"
        tokenizer_from(self.config, sample).save(folder)
        self.shares.upload(folder / _TOKENIZER, _TOKENIZER)

    def _has(self, key: str) -> bool:
        return self.shares.num_bytes(key) is not None

    def pack(self) -> None:
        """Write the share's chunks behind those that are there, then say that it is done."""
        if self._has(f"{self.name('done')}.json"):
            return
        folder = self.work / "tokenizer"
        self.tokenizer().save(folder)
        num_documents = max((end for end, _ in self.chunks(self.number)), default=0)
        path = self.work / "chunk.npz"
        for chunk in self.reader.packed(folder, skip=num_documents):
            num_documents += chunk.counts["documents"]
            _write_chunk(path, chunk)
            self.shares.upload(path, f"{self.name('packed')}/{num_documents:012d}.npz")
            if self.reader.stop.asked():
                raise InterruptedRunError(
                    f"stopped after {num_documents:,} documents of share {self.number}, all saved "
                    f"in {self.shares.url}; run the same command again"
                )
        skips = json.dumps(asdict(self.reader.corpus.skips)).encode()
        self.shares.put(f"{self.name('done')}.json", skips)
        print(f"share {self.number} of {self.count}: {num_documents:,} documents", flush=True)

    def chunks(self, number: int) -> list[tuple[int, str]]:
        """(documents of the share up to its end, key) of a share's chunks, in order."""
        keys = [stored.key for stored in self.shares.list(f"{self.name('packed', number)}/")]
        return [(int(Path(key).stem), key) for key in sorted(keys)]

    def whole_corpus(self, size_bytes: int) -> Corpus:
        """Wait for all shares; return the corpus with what they could not read."""
        self.wait("the other shares", lambda: len(self.shares.list("done-")) == self.count)
        corpus = Corpus(self.config.corpus, size_bytes=size_bytes)
        for number in range(1, self.count + 1):
            skips = json.loads(self.shares.get(f"{self.name('done', number)}.json"))
            corpus.skips.extend(Skips(**skips))
        return corpus

    def packed(self, folder: Path, *, skip: int) -> Generator[PackedChunk, None, None]:
        """Yield all chunks behind the first `skip` documents: commits are between chunks."""
        path, begin = self.work / "joined.npz", 0
        for number in range(1, self.count + 1):
            end = 0
            for end, key in self.chunks(number):
                if begin + end > skip:
                    self.shares.download(key, path)
                    yield _read_chunk(path)
            begin += end


_ARRAYS = ("hashes", "num_text_bytes", "num_tokens", "num_rows", "rows")


def _write_chunk(path: Path, chunk: PackedChunk) -> None:
    texts = {"counts": chunk.counts, "held_out": chunk.held_out}
    encoded = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    np.savez(path, texts=encoded, **{name: getattr(chunk, name) for name in _ARRAYS})


def _read_chunk(path: Path) -> PackedChunk:
    with np.load(path, allow_pickle=False) as stored:
        texts = json.loads(stored["texts"].tobytes())
        return PackedChunk(
            counts=Counter(texts["counts"]),
            held_out=texts["held_out"],
            **{name: stored[name] for name in _ARRAYS},
        )
