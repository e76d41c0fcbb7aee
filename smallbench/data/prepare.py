"""`smallbench prepare`: a source in, a directory of token shards out, whatever interrupts it.

The parent reads documents in order; workers clean, hash, tokenise and pack them; the parent drops
duplicates and appends rows. Files only grow, and `progress.json` says from time to time how long
each may be: a restarted run cuts them to that, skips the documents that are done, and so ends with
the bytes that it would have had.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.config import differing_keys, digest, to_dict
from smallbench.cores import available_cpus
from smallbench.data.cleaning import SeenHashes, is_held_out
from smallbench.data.config import PrepareConfig
from smallbench.data.meter import Meter
from smallbench.data.packing import PackedChunk, token_dtype
from smallbench.data.shards import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ShardWriter,
    TokenizerInfo,
    unigram_entropy,
)
from smallbench.data.skips import printable
from smallbench.data.source import CorpusSource, Source, corpus_of, nothing_kept
from smallbench.data.tokenizer import HELD_OUT_NAME, NUM_HELD_OUT, Tokenizer
from smallbench.data.transfer import (
    cache_directory,
    move_to_cache,
    publish_corpus,
    published_manifest,
)
from smallbench.errors import ConfigError, DataError, InterruptedRunError
from smallbench.files import (
    TEMPORARY_MARK,
    atomic_directory,
    exclusive_lock,
    sync_directory,
    sync_file,
    write_json,
)
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from smallbench.storage.base import Storage
from smallbench.storage.config import StorageConfig

COMMIT_BYTES = 64 << 20
"""Raw text between two commits: the most that a kill can lose."""

_LOCK, _PROGRESS, _HASHES, _TOKENIZER = "lock", "progress.json", "hashes.bin", "tokenizer"
_COUNTS = (
    "documents",
    "raw_bytes",
    "too_short",
    "duplicates",
    "decode_errors",
    "control_characters",
    "kept",
    "text_bytes",
    "tokens",
    "overlap_tokens",
    "padding_tokens",
    # Of all documents that are long enough, duplicates included:
    "encoded_tokens",
    "unknown_tokens",
    "words",
    "no_tokens",
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
    elsewhere; without it that is done here. Raises `ConfigError` if `out` holds something
    else, `DataError` if the source is of no use, `ConflictError` if another process prepares
    `out`, `InterruptedRunError` after a commit when `stop` asks for it.
    """
    options = options_of(config)
    if (out / MANIFEST_NAME).exists():
        return _finished(out, options)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={printable(out)} is a file; expected a directory, or a new name")
    if printable(out) != str(out):  # the libraries that write there take Unicode only
        raise ConfigError(f"--out={printable(out)} is not valid UTF-8; choose another name")
    if source is None:
        workers = workers or available_cpus()
        source = CorpusSource(config, corpus_of(config, out=out), workers, stop)
    was_there = out.is_dir()
    with exclusive_lock(
        out / _LOCK, f"another process prepares {out}; wait for it, or choose another --out"
    ):
        if (out / MANIFEST_NAME).exists():
            return _finished(out, options)
        run = _Preparation(config, options, source, out, stop)
        try:
            return run.run()
        except (ConfigError, DataError):
            # So that the corrected command, with other options, finds nothing in its way.
            run.undo()
            if not was_there and not any(path.name != _LOCK for path in out.iterdir()):
                (out / _LOCK).unlink()
                out.rmdir()
            raise


def options_of(config: PrepareConfig) -> dict[str, Any]:
    """Return the manifest's part about `config`, which may be a job's options with more fields."""
    values = {f.name: to_dict(config)[f.name] for f in fields(PrepareConfig)}
    # A path that is not UTF-8 cannot be written as JSON.
    return {key: printable(v) if isinstance(v, str) else v for key, v in values.items()}


def _finished(out: Path, options: dict[str, Any]) -> Manifest:
    manifest = Manifest.read(out)
    refuse_other_options(out, dict(manifest.options), options)
    (out / _PROGRESS).unlink(missing_ok=True)
    (out / _HASHES).unlink(missing_ok=True)
    print(f"{out} is already prepared with these options")
    return manifest


def prepare_remote(
    config: PrepareConfig,
    url: str,
    *,
    storage: StorageConfig,
    cache: Path | None = None,
    workers: int | None = None,
    stop: Stop = NEVER,
    source: Source | None = None,
) -> Manifest:
    """Run `prepare` in the cache and publish the corpus at `url`; keep the copy to train from.

    The same call continues, or finds it done. Raises the errors of `prepare` and `publish_corpus`;
    problems of `url` are raised before any work.
    """
    place = open_storage(url, storage)
    if (published := already_published(place, config)) is not None:
        return published
    place.check()
    name = f"{place.url.rpartition('/')[2]}-{hashlib.sha256(place.url.encode()).hexdigest()[:16]}"
    work = cache_directory(cache) / "prepare" / name
    with exclusive_lock(
        work.with_name(f"{name}.lock"),
        f"another process prepares {place.url} in {work}; wait for it, or choose another --out",
    ):
        manifest = prepare(config, out=work, workers=workers, stop=stop, source=source)
        publish_corpus(work, url, storage, stop=stop)
        move_to_cache(work, cache=cache)
    return manifest


def already_published(place: Storage, config: PrepareConfig) -> Manifest | None:
    """Return the manifest of the corpus in `place`, if it is complete.

    Raises `ConfigError` if it was prepared with other options.
    """
    content = published_manifest(place)
    if content is None:
        return None
    manifest = Manifest.parse(content, place=place.url)
    refuse_other_options(place.url, dict(manifest.options), options_of(config))
    print(f"{place.url} is already prepared with these options")
    return manifest


def refuse_other_options(out: Path | str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `ConfigError` naming the options in which a directory or URL differs from a command."""
    if changes := differing_keys(old, new):
        listed = ", ".join(f"{key} {was!r} → {now!r}" for key, (was, now) in changes.items())
        raise ConfigError(
            f"{out} was prepared with other options ({listed}); "
            "give those again, choose another --out, or delete it"
        )


@dataclass
class _PrepareProgress:
    """Content of `progress.json`: rows that are done, and valid lengths of the files."""

    options: dict[str, Any]
    source_bytes: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    held_out: list[str] = field(default_factory=list)


@dataclass
class _Preparation:
    config: PrepareConfig
    options: dict[str, Any]
    source: Source
    out: Path
    stop: Stop

    def __post_init__(self) -> None:
        self.is_new = not (self.out / _PROGRESS).exists()
        self.progress = self._read_progress()

    def run(self) -> Manifest:
        tokenizer = self._tokenizer()
        row_bytes = self.config.sequence_length * token_dtype(tokenizer.vocab_size).itemsize
        writers = {
            split: ShardWriter(self.out, split, row_bytes=row_bytes, rows=self.progress.rows[split])
            for split in SPLITS
        }
        self._write_rows(writers["train"], writers["eval"])
        return self._finish(tokenizer, writers["train"], writers["eval"])

    def _read_progress(self) -> _PrepareProgress:
        path, size_bytes = self.out / _PROGRESS, self.source.corpus.size_bytes
        if path.exists():
            progress = _PrepareProgress(**json.loads(path.read_text()))
            refuse_other_options(self.out, progress.options, self.options)
            if progress.source_bytes != size_bytes:
                raise ConfigError(
                    f"{self.config.corpus} had {progress.source_bytes} bytes when {self.out} was "
                    f"begun and has {size_bytes}; delete {self.out} or restore it"
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
            progress = _PrepareProgress(self.options, size_bytes)
        for leftover in self.out.glob(f"*{TEMPORARY_MARK}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return progress

    def undo(self) -> None:
        if self.is_new:
            shutil.rmtree(self.out / _TOKENIZER, ignore_errors=True)
            for path in self.out.iterdir():
                if path.name != _LOCK and path.is_file():
                    path.unlink()

    def _tokenizer(self) -> Tokenizer:
        folder = self.out / _TOKENIZER
        if not folder.is_dir():
            tokenizer = self.source.tokenizer()
            if self.is_new:  # not earlier: until here a command can be refused
                write_json(self.out / _PROGRESS, asdict(self.progress))
            with atomic_directory(folder) as temporary:
                tokenizer.save(temporary)
        return Tokenizer.load(folder)

    def _write_rows(self, train: ShardWriter, held_out: ShardWriter) -> None:
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

        results = self.source.packed(self.out / _TOKENIZER, skip=counts["documents"])
        num_uncommitted = 0
        meter = Meter("writing rows", self.source.corpus.size_bytes)
        with closing(results), closing(meter):
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
                counts += self._count_kept(chunk, is_new_D)
                room = NUM_HELD_OUT - len(self.progress.held_out)
                self.progress.held_out += chunk.held_out[:room]
                num_bytes, position = chunk.counts["raw_bytes"], self.source.corpus.position_bytes
                meter.update(chunk.counts["documents"], num_bytes, position)
                num_uncommitted += num_bytes
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

    def _count_kept(self, chunk: PackedChunk, is_new_D: NDArray[np.bool_]) -> Counter[str]:
        tokens_D = chunk.num_tokens[is_new_D]
        room_D = chunk.num_rows[is_new_D] * (self.config.sequence_length - 2)
        is_padded_D = (tokens_D < self.config.sequence_length - 2) & (tokens_D > 0)
        surplus_D = room_D - tokens_D
        return Counter(
            duplicates=int((~is_new_D).sum()),
            kept=len(tokens_D),
            text_bytes=int(chunk.num_text_bytes[is_new_D].sum()),
            tokens=int(tokens_D.sum()),
            overlap_tokens=int(surplus_D[~is_padded_D].sum()),
            padding_tokens=int(surplus_D[is_padded_D].sum()),
        )

    def _finish(self, tokenizer: Tokenizer, train: ShardWriter, held_out: ShardWriter) -> Manifest:
        if not train.rows:
            raise DataError(nothing_kept(self.config))
        dtype = token_dtype(tokenizer.vocab_size)
        eval_shards = held_out.shards()
        skips = self.source.corpus.skips
        write_json(self.out / _TOKENIZER / HELD_OUT_NAME, self.progress.held_out)
        counts = self.progress.counts
        manifest = Manifest(
            source=printable(self.config.corpus),
            sequence_length=self.config.sequence_length,
            dtype=dtype.str,
            tokenizer=TokenizerInfo(
                **{f.name: getattr(tokenizer, f.name) for f in fields(TokenizerInfo)}
            ),
            counts={key: counts.get(key, 0) for key in _COUNTS} | {"skipped": skips.count},
            rows={"train": train.rows, "eval": held_out.rows},
            shards=[*train.shards(), *eval_shards],
            eval_unigram_entropy_nats=unigram_entropy(
                [self.out / shard.name for shard in eval_shards],
                dtype=dtype,
                vocab_size=tokenizer.vocab_size,
                special_ids=tokenizer.special_ids,
            ),
            skipped=skips.named,
            notes=skips.notes,
            options=self.progress.options,
            options_digest=digest(self.progress.options),
        )
        manifest.write(self.out)
        (self.out / _PROGRESS).unlink()
        (self.out / _HASHES).unlink()
        return manifest
