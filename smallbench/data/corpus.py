"""SOURCE → raw documents, streamed in a fixed order, with what could not be read counted.

A raw document is UTF-8 bytes as they were found; `cleaning.clean` makes text of it in a worker.
One damaged file among others is a counted skip; a source without any text is a `DataError`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smallbench.data import installed_docs
from smallbench.data.config import ReadOptions
from smallbench.data.readers import Rows, is_hidden_file, read_documents, reason_of
from smallbench.data.skips import DamagedFileError, Skips, UnreadableError, printable
from smallbench.data.streams import DAMAGE, recognise
from smallbench.errors import DataError, UnavailableError

HUB_PREFIX = "hub:"
INSTALLED_DOCS = "installed-docs"
_EXPECTED = f"a file, a folder, a glob, {HUB_PREFIX}ORG/NAME or {INSTALLED_DOCS}"

# What a directory of our own has in it: it is not text, even if it is inside the corpus.
_OWN_DIRECTORIES = {
    "manifest.json": "a prepared corpus",
    "progress.json": "a corpus that is being prepared",
    "run.json": "the directory of a run",
    "smallbench.json": "an export",
}


@dataclass
class Corpus:
    """A source that is ready to be read; `open_corpus` makes one.

    `extract`, if given, turns a raw document into text and is meant to run in a worker.
    `position_bytes` of `size_bytes` says how far the last call of `documents` has read (both 0
    if the size is not known).
    """

    source: str
    files: list[Path] = field(default_factory=list)
    options: ReadOptions = field(default_factory=ReadOptions)
    extract: Callable[[bytes], bytes] | None = None
    size_bytes: int = 0
    position_bytes: int = 0
    skips: Skips = field(default_factory=Skips)
    found: Skips = field(default_factory=Skips)
    """Skips and notes of `open_corpus`, which come before those of reading."""
    is_whole: bool = True
    """False for some of a source's files: if they have no text, the others may."""

    def documents(self) -> Iterator[bytes]:
        """Yield all raw documents from the first on; counts `skips` anew.

        Raises `DataError` if the only file is damaged or there is no document, and
        `UnavailableError` if the hub or a file cannot be read.
        """
        self.skips = Skips()
        self.skips.extend(self.found)
        self.position_bytes = 0
        num_documents = 0
        if self.source == INSTALLED_DOCS:
            streams = [installed_docs.module_sources()]
        elif self.source.startswith(HUB_PREFIX):
            streams = [_hub_documents(self.source, self.options.text_field, self.skips)]
        else:
            streams = [self._file_documents(path) for path in self.files]
        for stream in streams:
            for document in stream:
                num_documents += 1
                yield document
        if not num_documents and self.is_whole:
            reasons = "; ".join(self.skips.named[:3]) or "it is empty"
            raise DataError(f"no document found in {printable(self.source)}: {reasons}")

    def _file_documents(self, path: Path) -> Iterator[bytes]:
        root, start, num_documents = Path(self.source), self.position_bytes, 0
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        try:
            with path.open("rb", buffering=0) as raw:
                for document in read_documents(raw, name, self.options, self.skips):
                    num_documents += 1
                    self.position_bytes = start + (0 if raw.closed else raw.tell())
                    yield document
        except DAMAGE as error:
            reason = reason_of(error)
            if num_documents:
                reason += f", after {num_documents:,} documents"
            if len(self.files) == 1 and self.is_whole:
                remedy = "" if type(error) is UnreadableError else "; replace the file"
                raise DataError(f"{printable(path)}: {reason}{remedy}") from error
            self.skips.add(name, reason)
        except OSError as error:
            raise _cannot_read(path, error) from error
        self.position_bytes = start + path.stat().st_size


def open_corpus(
    source: str,
    options: ReadOptions | None = None,
    *,
    exclude: Sequence[Path] = (),
    may_be_empty: bool = False,
) -> Corpus:
    """Find what `source` names, and look at the beginning of each file.

    A file, a folder (searched recursively, hidden files left out) or a glob; `hub:ORG/NAME`; or
    `installed-docs`. Text, JSON lines, CSV, parquet and tar are recognised by content, compressed
    or not. `exclude` has files and folders that are left out, as are directories of our own.
    Raises `DataError` if there is no text (`may_be_empty` where others have the rest),
    `UnavailableError` if something cannot be read.
    """
    options = options or ReadOptions()
    if source == INSTALLED_DOCS:
        return Corpus(source, options=options, extract=installed_docs.docstrings)
    if source.startswith(HUB_PREFIX):
        return Corpus(source, options=options)
    found = Skips()
    root, paths = _find(source, found, {path.resolve() for path in exclude})
    reasons = {path: _why_unreadable(path) for path in paths}
    if len(paths) == 1 and not may_be_empty and (reason := reasons[paths[0]]):
        raise DataError(f"{printable(paths[0])}: {reason}")
    size_bytes = sum(path.stat().st_size for path in paths)
    readable_bytes = sum(path.stat().st_size for path in paths if reasons[path] is None)
    if not readable_bytes and not may_be_empty:
        named = [f"{printable(path.name)}: {reason}" for path, reason in reasons.items() if reason]
        empty = "all its files are empty" if paths else "it has no file"
        why = "; ".join([*named[:3], *found.named[:3], *found.notes[:3]]) or empty
        raise DataError(f"no text found in {printable(source)}: {why}")
    # What is not text is skipped when its turn comes, so that shares of the files add up.
    return Corpus(str(root), paths, options, size_bytes=size_bytes, found=found)


def _find(source: str, found: Skips, exclude: set[Path]) -> tuple[Path, list[Path]]:
    """Return the root and the regular files, sorted; what is left out is noted in `found`."""
    if not source.strip():
        raise DataError(f"--corpus is empty; expected {_EXPECTED}")
    try:
        root = Path(source).expanduser()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"--corpus={source}: {error}") from None
    if root.is_dir():
        if (root / "manifest.json").is_file() and (root / "tokenizer").is_dir():
            raise DataError(f"{printable(source)} is a prepared corpus; expected the text itself")
        return root, sorted(_walk(root, root, found, exclude))
    if root.exists():
        if not root.is_file():
            raise DataError(
                f"{printable(source)} is not a regular file; a corpus is read more than once, so "
                "save it to a file first"
            )
        return root, [root]
    if glob.has_magic(source):
        # Path.glob would refuse a pattern that is an absolute path.
        matches = [Path(path) for path in glob.glob(str(root), recursive=True)]  # noqa: PTH207
        paths = {path for path in matches if path.is_file() and not _is_inside(path, exclude)}
        for path in matches:
            if path.is_dir() and not _is_inside(path, exclude) and not _own_kind(path):
                paths.update(_walk(path, path.parent, found, exclude))
        if not paths:
            raise DataError(f"no file matches {printable(source)}")
        return root, sorted(paths)
    raise DataError(f"{printable(source)} does not exist; expected {_EXPECTED}")


def _walk(folder: Path, root: Path, found: Skips, exclude: set[Path]) -> Iterator[Path]:
    """Yield the regular files of a folder; links to folders are followed, loops are not."""

    def fail(error: OSError) -> None:
        raise _cannot_read(Path(error.filename), error)

    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        here = Path(name)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside, folders[:] = sorted(folders), []
        for child in inside:
            if is_hidden_file([child]) or _is_inside(here / child, exclude):
                continue
            if kind := _own_kind(here / child):
                name = (here / child).relative_to(root).as_posix()
                found.note(name, f"{kind}; left out of the corpus")
            else:
                folders.append(child)
        for file in sorted(files):
            path = here / file
            if is_hidden_file([file]) or _is_inside(path, exclude):
                continue
            if path.is_file():
                yield path
            else:
                found.add(path.relative_to(root).as_posix(), "not a regular file, or a broken link")


def _own_kind(folder: Path) -> str | None:
    if folder.name.endswith(".shares") and (folder / "options.json").is_file():
        return "the shares of a corpus that is being prepared"
    for name, kind in _OWN_DIRECTORIES.items():
        is_corpus = name in {"manifest.json", "progress.json"}  # names that others use too
        if (folder / name).is_file() and (
            not is_corpus or (folder / "lock").is_file() or (folder / "tokenizer").is_dir()
        ):
            return kind
    return None


def _is_inside(path: Path, exclude: set[Path]) -> bool:
    if not exclude:
        return False
    resolved = path.resolve()
    return any(resolved == other or other in resolved.parents for other in exclude)


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb", buffering=0) as raw:
            recognise(raw, path.name, buffer_bytes=64 << 10)
    except (DamagedFileError, EOFError):
        return None
    except UnreadableError as error:
        return str(error)
    except OSError as error:
        raise _cannot_read(path, error) from error
    return None


def _cannot_read(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"cannot read {printable(path)} ({error.strerror or error}); make it readable or move it "
        "out of the corpus, then run the same command again"
    )


def share_of(corpus: Corpus, *, number: int, count: int) -> Corpus:
    """Share `number` (from 1) of `count` of the files: a run of them, of about equal size.

    The shares in their order are the corpus in its order. What has no files is all in the first.
    """
    sizes = [path.stat().st_size for path in corpus.files]
    mine = [
        path
        for path, share in zip(corpus.files, deal_in_runs(sizes, count), strict=True)
        if share == number
    ]
    is_first = number == 1
    if is_first and mine == corpus.files:
        return corpus
    return replace(
        corpus,
        source=corpus.source if mine or is_first else "",
        files=mine,
        size_bytes=sum(path.stat().st_size for path in mine),
        found=corpus.found if is_first else Skips(),
        is_whole=False,
    )


def deal_in_runs(sizes: Sequence[int], count: int) -> list[int]:
    """A share from 1 to `count` for each of `sizes`, never falling: whose part its middle is in."""
    shares, begin, total = [], 0, max(1, sum(sizes))
    for size in sizes:
        shares.append(1 + min(count - 1, (2 * begin + size) * count // (2 * total)))
        begin += size
    return shares


# ---- `hub:ORG/NAME[:CONFIG]`: the rows of the train split, through the package `datasets`


def _hub_documents(source: str, text_field: str, skips: Skips) -> Iterator[bytes]:
    name, config = _name_and_config(source)
    try:
        import datasets
    except ImportError:
        raise UnavailableError(
            f"{source} needs the package 'datasets': pip install 'smallbench[train]'"
        ) from None
    rows, num_rows = Rows(source, skips, text_field), 0
    try:
        table = datasets.load_dataset(name, config, split="train", streaming=True)
        _check_field(source, getattr(table, "features", None), text_field)
        for row in table:
            num_rows += 1
            if (text := rows.text_of(row)) is not None:
                yield text
    except DataError:
        raise
    except OSError as error:
        if type(error).__name__ == "DatasetNotFoundError":
            raise DataError(
                f"{source} does not exist, or your token (HF_TOKEN) has no access to it; expected "
                "hub:ORG/NAME or hub:ORG/NAME:CONFIG"
            ) from None
        raise UnavailableError(
            f"cannot read {source} ({error}); check the name and the network, "
            "then run the same command again"
        ) from error
    except Exception as error:  # `datasets` raises ValueError, RuntimeError, pyarrow's errors, …
        cause = error.__cause__ or error
        detail = " ".join(str(cause).split())[:200]
        raise DataError(
            f"{source} could not be read after {num_rows:,} rows ({type(cause).__name__}: "
            f"{detail}); expected hub:ORG/NAME:CONFIG with a split 'train', or files"
        ) from error
    rows.report()


def _name_and_config(source: str) -> tuple[str, str | None]:
    name, colon, config = source.removeprefix(HUB_PREFIX).rpartition(":")
    if not colon or "/" in config:  # a local path may have a colon in a folder's name
        name, config = source.removeprefix(HUB_PREFIX), ""
    if not name.strip():
        raise DataError(f"{source!r} is not the name of a data set; expected hub:ORG/NAME[:CONFIG]")
    return name, config or None


def _check_field(source: str, features: Any, text_field: str) -> None:
    if not features or "." in text_field:
        return
    if text_field not in features:
        raise DataError(
            f"{source} has no column {text_field!r}, only {', '.join(features)}; "
            "give --text_field=NAME"
        )
    kind = getattr(features[text_field], "dtype", type(features[text_field]).__name__)
    if kind not in {"string", "large_string", "null"}:
        raise DataError(
            f"column {text_field!r} of {source} has {kind}, not text; give --text_field=NAME "
            f"(columns: {', '.join(features)})"
        )
