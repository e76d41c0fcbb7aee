"""Corpus preparation: smallbench against `datasets.map` with the same tokenizer, in one run.

Both read the same plain text file and use two processes. Ours cleans, drops duplicates, splits,
tokenises, packs and checksums; theirs tokenises and groups into 128-token blocks, as
transformers' `run_mlm.py` does. Rounds alternate; medians count.

    python -m benchmarks.prepare [--text=FILE] [--rounds=3] [--workers=2]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

from smallbench.data.cleaning import clean
from smallbench.data.config import PrepareConfig
from smallbench.data.corpus import open_corpus
from smallbench.data.prepare import prepare
from smallbench.data.tokenizer import Tokenizer, train_tokenizer

SEQUENCE_LENGTH = 128


def ours(text: Path, tokenizer: Path, out: Path, workers: int) -> int:
    """Rows written."""
    manifest = prepare(
        PrepareConfig(corpus=str(text), tokenizer=str(tokenizer), min_characters=1),
        out=out / "corpus",
        workers=workers,
    )
    return sum(manifest.rows.values())


def theirs(text: Path, tokenizer: Path, out: Path, workers: int) -> int:
    """Blocks written."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))
    raw = datasets.load_dataset(
        "text", data_files=str(text), sample_by="paragraph", split="train", cache_dir=str(out)
    )

    def tokenize(batch: dict) -> dict:
        return fast(batch["text"], return_special_tokens_mask=True)

    def group_texts(batch: dict) -> dict:
        joined = {key: list(chain(*batch[key])) for key in batch}
        total = len(joined["input_ids"]) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
        return {
            key: [values[i : i + SEQUENCE_LENGTH] for i in range(0, total, SEQUENCE_LENGTH)]
            for key, values in joined.items()
        }

    options = {"batched": True, "num_proc": workers, "load_from_cache_file": False}
    tokenized = raw.map(tokenize, remove_columns=["text"], **options)
    return len(tokenized.map(group_texts, **options))


def installed_docs_text(path: Path, num_documents: int) -> None:
    """The documentation installed with Python, as one .txt."""
    corpus = open_corpus("installed-docs")
    assert corpus.extract
    with path.open("w") as stream:
        for _, raw in zip(range(num_documents), corpus.documents(), strict=False):
            if text := clean(corpus.extract(raw)).text:
                stream.write(text + "\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="plain text, blank lines between documents")
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt or folder; else one is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = arguments.text
        if text is None:
            text = folder / "docs.txt"
            installed_docs_text(text, 6000)
        # Both read a plain file, so that only the preparation is timed.
        plain = folder / "plain.txt"
        with plain.open("wb") as stream:
            for document in open_corpus(str(text)).documents():
                stream.write(document.strip() + b"\n\n")
        tokenizer = folder / "tokenizer"
        _tokenizer(arguments.tokenizer, plain).save(tokenizer)
        megabytes = plain.stat().st_size / 1e6
        rates: dict[str, list[float]] = {"smallbench": [], "datasets.map": []}
        for round_number in range(arguments.rounds):
            for title, program in (("smallbench", ours), ("datasets.map", theirs)):
                out = folder / f"round-{round_number}-{title}"
                begin = time.perf_counter()
                rows = program(plain, tokenizer, out, arguments.workers)
                rates[title].append(megabytes / (time.perf_counter() - begin))
                print(f"  {title:<14}{rates[title][-1]:8.2f} MB/s  {rows:,} rows", flush=True)
                shutil.rmtree(out)
    medians = {title: statistics.median(values) for title, values in rates.items()}
    ratio = medians["smallbench"] / medians["datasets.map"]
    print(f"\n{megabytes:.1f} MB, {arguments.workers} processes, {arguments.rounds} rounds each")
    for title, rate in medians.items():
        print(f"| {title:<14}| {rate:6.2f} MB/s |")
    print(
        json.dumps(
            {
                "benchmark": "prepare",
                "megabytes": round(megabytes, 1),
                "processes": arguments.workers,
                "rounds": arguments.rounds,
                "mb_per_second": {title: round(rate, 2) for title, rate in medians.items()},
                "ratio": round(ratio, 2),
            }
        )
    )


def _tokenizer(path: Path | None, plain: Path) -> Tokenizer:
    if path is not None:
        return Tokenizer.load(path)
    texts = [clean(document).text for document in open_corpus(str(plain)).documents()]
    return train_tokenizer("wordpiece", texts, vocab_size=30_522)


if __name__ == "__main__":
    main()
