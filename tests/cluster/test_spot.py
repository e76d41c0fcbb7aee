"""A preempted pod of the default recipe saves in the time that the shortest provider gives it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallbench.cluster.sizes import UPLOAD_BYTES_PER_SECOND
from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.errors import ExitCode
from smallbench.storage import open_storage
from tests.servers.proxy import Slow

GRACE_SECONDS = 15  # of spot-gke
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Made-up words, as many as BERT's vocabulary has, so that the checkpoint is the real size."""
    words = [f"w{number}" for number in range(30_522 - len(SPECIAL))]
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *words, ""]))
    draw = random.Random(0)
    text = "\n\n".join(" ".join(draw.choices(words, k=200)) for _ in range(300))
    (tmp_path / "text.txt").write_text(text)
    config = PrepareConfig(
        corpus=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "vocab.txt"),
        eval_fraction=0.1, min_characters=60,
    )  # fmt: skip
    prepare(config, out=tmp_path / "corpus", workers=1)
    return tmp_path / "corpus"


@pytest.mark.slow
def test_a_bert_small_that_is_preempted_is_in_a_slow_store_within_15_seconds(
    corpus, moto_bucket, proxy, tmp_path: Path
):
    slow = proxy(moto_bucket)
    slow.fail(Slow(UPLOAD_BYTES_PER_SECOND))
    run_dir = tmp_path / "runs" / "mine"
    process = subprocess.Popen(
        [sys.executable, "-m", "smallbench.jobs.pretrain", "bert-small", f"--data={corpus}",
         f"--run_dir={run_dir}", f"--storage={moto_bucket.url}/runs",
         f"--endpoint_url={slow.endpoint_url}", "--addressing_style=path",
         "--train.global_batch_size=2", "--train.num_eval_rows=2", "--train.max_steps=100000"],
        env={**os.environ, "SMALLBENCH_GRACE_SECONDS": str(GRACE_SECONDS)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        beat = run_dir / "heartbeat.json"
        end = time.monotonic() + 300
        while not beat.exists() or json.loads(beat.read_text())["step"] < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said = process.communicate(timeout=120)[1]
        seconds = time.monotonic() - asked
    finally:
        process.kill()
        process.wait()
    assert process.returncode == ExitCode.INTERRUPTED, said
    print(f"saved and uploaded within {seconds:.1f} s of SIGTERM")
    assert seconds < GRACE_SECONDS
    runs = open_storage(f"{moto_bucket.url}/runs/mine", moto_bucket.config)
    assert runs.list("commits/")
    stored = sum(item.num_bytes for item in runs.list(""))
    assert stored > 12 * 13.5e6, "weights and two moments of each parameter"
