"""Runs as files, made up: what a report reads, without training."""

import json
import math


def records(num_steps=100, *, every=1, loss=5.0, **more):
    """Training records with a falling loss, and five evaluations."""
    found = []
    for step in range(0, num_steps + 1, every):
        place = {"step": step, "tokens": 128 * step, "train_seconds": 36.0 * step}
        value = loss * math.exp(-2 * step / num_steps)
        if step % (num_steps // 5) == 0:
            found.append(
                {"event": "eval", **place, "loss": value, "mlm_loss": value, "unigram_entropy": 6.5}
            )
        if step:
            train = {"loss": value, "mlm_loss": value, "learning_rate": 1e-3, "grad_norm": 1.0}
            rates = {"tokens_per_second": 4e3, "mfu": 0.4, "skipped_steps": 0}
            found.append({"event": "train", **place, **train, **rates, **more})
    return found


def write_run(run_dir, *, rows=None, first_steps=(0,), summary=None, **config):
    """A run directory with one attempt for each of `first_steps`."""
    run_dir.mkdir(parents=True)
    record = {
        "schema_version": 1,
        "run_id": "abcd1234",
        "config": {"recipe": "bert-tiny", "optim": {"learning_rate": 1e-3}, **config},
        "data": "corpus",
        "corpus": {},
        "plugins": [],
        "attempts": [
            {
                "number": number,
                "first_step": step,
                "started_unix_seconds": 1e9 + number,
                "smallbench": "0.1.0",
                "git_commit": None,
                "device": "x86_64",
                "precision": "fp32",
            }
            for number, step in enumerate(first_steps, 1)
        ],
        **({"summary": summary} if summary else {}),
    }
    (run_dir / "run.json").write_text(json.dumps(record))
    lines = [json.dumps(row) + "\n" for row in (records() if rows is None else rows)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return str(run_dir)
