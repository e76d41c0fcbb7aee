"""`smallbench prepare`: a source in, a directory of token shards out, whatever interrupts it.

The parent reads documents in order; workers clean, hash, tokenise and pack them; the parent drops
duplicates and appends rows. Files only grow, and `progress.json` says from time to time how long
each may be: a restarted run cuts them to that, skips the documents that are done, and so ends with
the bytes that it would have had.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from smallbench.config import command, differing_keys, digest, to_dict
from smallbench.cores import available_cpus
from smallbench.data.cleaning import is_held_out
from smallbench.data.config import PrepareConfig, is_trained
from smallbench.data.corpus import Corpus, Skips, open_corpus
from smallbench.data.duplicates import SeenHashes
from smallbench.data.meter import Meter
from smallbench.data.packing import PackedChunk, TextRules, pack_chunk, token_dtype
from smallbench.data.sampling import TextSample, sample_chunk
from smallbench.data.shards import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ShardWriter,
    TokenizerInfo,
    unigram_entropy,
)
from smallbench.data.tokenizer import Tokenizer, train_tokenizer
from smallbench.data.workers import ordered_map
from smallbench.errors import ConfigError, DataError, InterruptedRunError
from smallbench.files import (
    TEMPORARY_MARK,
    exclusive_lock,
    sync_directory,
    sync_file,
    temporary_sibling,
    write_json,
)
from smallbench.stop import NEVER, Stop

PAPER_VOCABULARIES = {"wordpiece": ("bert", 30_522), "bpe": ("roberta", 50_265)}
"""Kind of tokenizer → family of recipes, and the size of its public vocabulary."""

CHUNK_BYTES = 4 << 20
"""Raw text that a worker gets at a time."""
COMMIT_BYTES = 64 << 20
"""Raw text after which the position is committed: what a kill can cost."""

_LOCK, _PROGRESS, _HASHES, _TOKENIZER = "lock", "progress.json", "hashes.bin", "tokenizer"
_COUNTS = (
    "documents",
    "raw_bytes",
    "too_short",
    "duplicates",
    "decode_errors",
    "control_characters",
    "kept",
    "kept_eval",
    "text_bytes",
    "tokens",
    "overlap_tokens",
    "padding_tokens",
    "padded_rows",
)


def prepare(
    config: PrepareConfig,
    *,
    out: Path,
    workers: int | None = None,
    stop: Stop = NEVER,
    source: Source | None = None,
) -> Manifest:
    """Make `out` a complete directory of token shards, or find that it is one.

    The same call continues what was interrupted. `source` is what the corpus was packed to
    elsewhere; without it that is done here. Raises `ConfigError` where `out` holds something
    else, `DataError` where the source is of no use, `ConflictError` where another process prepares
    `out`, `InterruptedRunError` after a commit when `stop` asks for it.
    """
    options = options_of(config)
    if (out / MANIFEST_NAME).exists():
        return _finished(out, options)
    if source is None:
        workers = workers or available_cpus()
        source = CorpusSource(config, open_corpus(config.corpus), workers, stop)
    with exclusive_lock(
        out / _LOCK, f"another process prepares {out}; wait for it, or choose another --out"
    ):
        if (out / MANIFEST_NAME).exists():
            return _finished(out, options)
        return _Run(config, options, source, out, stop).run()


def options_of(config: PrepareConfig) -> dict[str, Any]:
    """What a manifest says about `config`, which may be a job's options with more fields."""
    return {f.name: to_dict(config)[f.name] for f in fields(PrepareConfig)}


def summary(manifest: Manifest, out: Path | str) -> str:
    """A few lines for people: what was kept, what was dropped, what to type next."""
    c = manifest.counts
    lines = [
        f"{c['documents']:,} documents read: {c['kept']:,} kept, {c['too_short']:,} too short, "
        f"{c['duplicates']:,} duplicates; {c['skipped']:,} unreadable members skipped",
        f"{c['text_bytes'] / 1e6:,.1f} MB of text, {c['tokens']:,} tokens "
        f"(+ {c['overlap_tokens']:,} overlap, {c['padding_tokens']:,} padding)",
        f"{manifest.rows['train']:,} training and {manifest.rows['eval']:,} held-out rows of "
        f"{manifest.sequence_length} tokens, vocabulary {manifest.tokenizer.vocab_size:,}",
    ]
    if manifest.eval_unigram_entropy_nats is not None:
        entropy = manifest.eval_unigram_entropy_nats
        lines.append(f"held-out unigram entropy {entropy:.4f} nats: the loss to get well below")
    else:
        lines.append("no held-out rows: prepare a larger corpus, or with a larger --eval_fraction")
    repaired = f"{c['decode_errors']:,} decoding errors and {c['control_characters']:,} controls"
    lines.append(f"repaired: {repaired}")
    lines += [f"skipped: {name}" for name in manifest.skipped[:5]]
    # The paper's recipes want the paper's vocabularies; the tiny ones take any.
    family, size = PAPER_VOCABULARIES[manifest.tokenizer.kind]
    recipe = f"{family}-{'small' if manifest.tokenizer.vocab_size == size else 'tiny'}"
    lines.append(f"Next:\n  {command('pretrain', recipe, data=out, run_dir=f'runs/{recipe}')}")
    return "\n".join(lines)


def _finished(out: Path, options: dict[str, Any]) -> Manifest:
    manifest = Manifest.read(out)
    refuse_other_options(out, dict(manifest.options), options)
    (out / _PROGRESS).unlink(missing_ok=True)
    (out / _HASHES).unlink(missing_ok=True)
    print(f"{out} is already prepared with these options")
    return manifest


def refuse_other_options(out: Path | str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `ConfigError` naming the options in which a directory or URL differs from a command."""
    changes = differing_keys(old, new)
    if changes:
        listed = ", ".join(f"{key} {was!r} → {now!r}" for key, (was, now) in changes.items())
        raise ConfigError(
            f"{out} was prepared with other options ({listed}); "
            "give those again, choose another --out, or delete it"
        )


@dataclass
class _Progress:
    """What `progress.json` says: how far the run is, and how long its files may be."""

    options: dict[str, Any]
    source_bytes: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


class _SampleTask(NamedTuple):
    documents: list[bytes]
    bound: int


class _SampleResult(NamedTuple):
    num_documents: int
    num_bytes: int
    texts: list[tuple[int, bytes]]


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """One tokenizer a process, with the words that it has learnt."""
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


def _sample(task: _SampleTask, *, rules: TextRules) -> _SampleResult:
    sample = sample_chunk(task.documents, rules=rules, bound=task.bound)
    return _SampleResult(len(task.documents), sum(map(len, task.documents)), sample)


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
        """The given one, or one that is trained on a sample."""
        ...

    def packed(
        self, folder: Path, tokenizer: Tokenizer, *, skip: int
    ) -> Generator[PackedChunk, None, None]:
        """What becomes of all documents but the first `skip`; `folder` holds the tokenizer."""
        ...


class CorpusSource:
    """A corpus that is read, cleaned and tokenised here, by several processes."""

    def __init__(
        self,
        config: PrepareConfig,
        corpus: Corpus,
        workers: int,
        stop: Stop,
    ) -> None:
        self.config, self.corpus, self.workers = config, corpus, workers
        self.stop = stop
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
        """The given one, or one that is trained on a sample."""
        if not is_trained(self.config.tokenizer):
            return given_tokenizer(self.config)
        return tokenizer_from(self.config, self.sample())

    def sample(self) -> TextSample:
        """The texts to train a tokenizer on."""
        sample = TextSample(self.config.tokenizer_sample_bytes)
        tasks = (_SampleTask(chunk, sample.bound) for chunk in self._chunks(skip=0))
        results = ordered_map(partial(_sample, rules=self.rules), tasks, workers=self.workers)
        with closing(results), Meter("sampling for a tokenizer", self.size_bytes) as meter:
            for result in results:
                for hash_value, text in result.texts:
                    sample.add(hash_value, text)
                meter.update(
                    num_documents=result.num_documents,
                    num_bytes=result.num_bytes,
                    position_bytes=self.position_bytes,
                )
                self.stop.raise_if_asked(f"sampling {self.config.corpus} for the tokenizer")
        return sample

    def packed(
        self, folder: Path, tokenizer: Tokenizer, *, skip: int
    ) -> Generator[PackedChunk, None, None]:
        """What becomes of all documents but the first `skip`."""
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
    """The one that `config` names by its path."""
    return Tokenizer.load(Path(config.tokenizer).expanduser())


def tokenizer_from(config: PrepareConfig, sample: TextSample) -> Tokenizer:
    """The one that is trained on `sample`; raises `DataError` where it is empty."""
    if not len(sample):
        raise DataError(_nothing_kept(config))
    print(f"training a {config.tokenizer} tokenizer on {sample.num_bytes / 1e6:.1f} MB")
    return train_tokenizer(config.tokenizer, sample, vocab_size=config.vocab_size)


def _nothing_kept(config: PrepareConfig) -> str:
    return (
        f"no document of {config.corpus} is left to train on; expected some of at least "
        f"--min_characters={config.min_characters}"
    )


class _Run:
    """One attempt at a directory that is not complete; it holds the lock."""

    def __init__(
        self,
        config: PrepareConfig,
        options: dict[str, Any],
        source: Source,
        out: Path,
        stop: Stop,
    ) -> None:
        self.config = config
        self.source = source
        self.out = out
        self.stop = stop
        self.progress = self._read_progress(options)

    def run(self) -> Manifest:
        tokenizer = self._tokenizer()
        row_bytes = self.config.sequence_length * token_dtype(tokenizer.vocab_size).itemsize
        writers = {
            split: ShardWriter(self.out, split, row_bytes=row_bytes, rows=self.progress.rows[split])
            for split in SPLITS
        }
        self._write_rows(tokenizer, writers["train"], writers["eval"])
        return self._finish(tokenizer, writers["train"], writers["eval"])

    def _read_progress(self, options: dict[str, Any]) -> _Progress:
        path = self.out / _PROGRESS
        if path.exists():
            progress = _Progress(**json.loads(path.read_text()))
            refuse_other_options(self.out, progress.options, options)
            if progress.source_bytes != self.source.size_bytes:
                raise ConfigError(
                    f"{self.config.corpus} had {progress.source_bytes} bytes when {self.out} was "
                    f"begun and has {self.source.size_bytes}; delete {self.out} or restore it"
                )
        else:
            foreign = [
                p.name
                for p in self.out.iterdir()
                if p.name != _LOCK and TEMPORARY_MARK not in p.name
            ]
            if foreign:
                raise ConfigError(
                    f"{self.out} holds other files ({', '.join(sorted(foreign)[:3])}); "
                    "choose a new or empty --out"
                )
            progress = _Progress(options, self.source.size_bytes)
            write_json(path, asdict(progress))
        for leftover in self.out.glob(f"*{TEMPORARY_MARK}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return progress

    def _tokenizer(self) -> Tokenizer:
        """The directory's own tokenizer; where it has none yet, the given or a trained one."""
        folder = self.out / _TOKENIZER
        if not folder.is_dir():
            tokenizer = self.source.tokenizer()
            temporary = temporary_sibling(folder)
            tokenizer.save(temporary)
            for path in temporary.iterdir():
                sync_file(path)
            temporary.rename(folder)
            sync_directory(self.out)
        return Tokenizer.load(folder)

    def _write_rows(self, tokenizer: Tokenizer, train: ShardWriter, held_out: ShardWriter) -> None:
        """Append what is not done yet to the files, committing at times and at the end."""
        counts = Counter(self.progress.counts)
        seen = self._read_hashes(counts["kept"])

        def commit() -> None:
            for writer in (train, held_out):
                writer.commit()
            sync_file(self.out / _HASHES)
            sync_directory(self.out)
            self.progress.counts = dict(counts)
            self.progress.rows = {"train": train.rows, "eval": held_out.rows}
            # Last: it vouches for everything above.
            write_json(self.out / _PROGRESS, asdict(self.progress))

        results = self.source.packed(self.out / _TOKENIZER, tokenizer, skip=counts["documents"])
        num_uncommitted = 0
        with closing(results), Meter("writing rows", self.source.size_bytes) as meter:
            for chunk in results:
                is_new_D = seen.add(chunk.hashes)
                is_eval_D = np.array(
                    [is_held_out(int(h), self.config.eval_fraction) for h in chunk.hashes],
                    dtype=np.bool_,
                )
                for writer, chosen_D in (
                    (train, is_new_D & ~is_eval_D),
                    (held_out, is_new_D & is_eval_D),
                ):
                    writer.append(chunk.rows[np.repeat(chosen_D, chunk.num_rows)])
                with (self.out / _HASHES).open("ab") as stream:
                    stream.write(chunk.hashes[is_new_D].astype("<u8").tobytes())
                counts += chunk.counts
                counts += self._count_kept(chunk, is_new_D, is_eval_D)
                meter.update(
                    num_documents=chunk.counts["documents"],
                    num_bytes=chunk.counts["raw_bytes"],
                    position_bytes=self.source.position_bytes,
                )
                num_uncommitted += chunk.counts["raw_bytes"]
                if num_uncommitted >= COMMIT_BYTES:
                    commit()
                    num_uncommitted = 0
                if self.stop.asked():
                    commit()
                    raise InterruptedRunError(
                        f"stopped after {counts['documents']:,} documents, all saved in "
                        f"{self.out}; run the same command again"
                    )
        commit()

    def _read_hashes(self, count: int) -> SeenHashes:
        path = self.out / _HASHES
        path.touch()
        if path.stat().st_size < 8 * count:
            raise DataError(
                f"{path} is shorter than it was; delete {self.out} and prepare it again"
            )
        os.truncate(path, 8 * count)
        return SeenHashes(np.fromfile(path, dtype="<u8"))

    def _count_kept(
        self, chunk: PackedChunk, is_new_D: NDArray[np.bool_], is_eval_D: NDArray[np.bool_]
    ) -> Counter[str]:
        tokens_D = chunk.num_tokens[is_new_D]
        room_D = chunk.num_rows[is_new_D] * (self.config.sequence_length - 2)
        is_padded_D = (tokens_D < self.config.sequence_length - 2) & (tokens_D > 0)
        surplus_D = room_D - tokens_D
        return Counter(
            duplicates=int((~is_new_D).sum()),
            kept=len(tokens_D),
            kept_eval=int((is_new_D & is_eval_D).sum()),
            text_bytes=int(chunk.num_text_bytes[is_new_D].sum()),
            tokens=int(tokens_D.sum()),
            overlap_tokens=int(surplus_D[~is_padded_D].sum()),
            padding_tokens=int(surplus_D[is_padded_D].sum()),
            padded_rows=int(is_padded_D.sum()),
        )

    def _finish(self, tokenizer: Tokenizer, train: ShardWriter, held_out: ShardWriter) -> Manifest:
        """Describe the files; from then on the directory is complete."""
        if not train.rows:
            raise DataError(_nothing_kept(self.config))
        dtype = token_dtype(tokenizer.vocab_size)
        eval_shards = held_out.shards()
        skips = self.source.skips
        manifest = Manifest(
            source=self.config.corpus,
            sequence_length=self.config.sequence_length,
            dtype=dtype.str,
            tokenizer=TokenizerInfo(
                **{f.name: getattr(tokenizer, f.name) for f in fields(TokenizerInfo)}
            ),
            counts={key: self.progress.counts.get(key, 0) for key in _COUNTS}
            | {"skipped": skips.count},
            rows={"train": train.rows, "eval": held_out.rows},
            shards=[*train.shards(), *eval_shards],
            eval_unigram_entropy_nats=unigram_entropy(
                [self.out / shard.name for shard in eval_shards],
                dtype=dtype,
                vocab_size=tokenizer.vocab_size,
                special_ids=tokenizer.special_ids,
            ),
            skipped=skips.named,
            options=self.progress.options,
            options_digest=digest(self.progress.options),
        )
        manifest.write(self.out)
        (self.out / _PROGRESS).unlink()
        (self.out / _HASHES).unlink()
        return manifest
