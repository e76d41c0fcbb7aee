"""The metrics file is the truth; the other trackers only show it."""

import io
import json
import sys

import pytest

from smallbench.errors import DataError
from smallbench.tracking.console import Console
from smallbench.tracking.jsonl import MetricsFile, read_metrics
from smallbench.tracking.plot import plot_loss


def record(step, event="train"):
    extra = (
        {"unigram_entropy": 6.0} if event == "eval" else {"tokens_per_second": 10.0, "mfu": None}
    )
    return {
        "event": event, "step": step, "tokens": step * 100, "loss": 7.0 - step / 100,
        "learning_rate": 1e-3, **extra,
    }  # fmt: skip


def write(path, steps, *, from_step=0):
    metrics = MetricsFile(path, from_step=from_step)
    for step in steps:
        metrics.log(record(step))
    metrics.close()


def test_logged_flops_are_read(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2])
    assert read_metrics(tmp_path / "m.jsonl") == [record(1), record(2)]


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2, 3, 4])
    write(tmp_path / "m.jsonl", [3, 4, 5], from_step=2)
    assert [r["step"] for r in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3, 4, 5]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2])
    write(tmp_path / "m.jsonl", [1])
    assert len(read_metrics(tmp_path / "m.jsonl")) == 1


def test_a_line_cut_by_a_kill_is_left_out_but_other_damage_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [1, 2])
    whole = path.read_text()
    path.write_text(whole[:-5])
    assert [r["step"] for r in read_metrics(path)] == [1]
    path.write_text(whole + "{nonsense\n")
    with pytest.raises(DataError, match=r"m\.jsonl, line 3: not a JSON object \(Expecting prop"):
        read_metrics(path)


def test_a_missing_file_is_not_a_record(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_anything_else_one_json_line_a_record(monkeypatch, capsys):
    console = Console(num_steps=10, first_step=0, description="bert-tiny")
    console.log(record(5))
    console.close()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [record(5)]
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    console = Console(num_steps=10, first_step=0, description="bert-tiny")
    console.log(record(5))
    console.log(record(5, "eval"))
    console.close()
    assert capsys.readouterr().out == ""
    assert "loss 6.950" in screen.getvalue()
    assert "eval: loss 6.95" in screen.getvalue()


@pytest.mark.parametrize("terms", [("mlm",), ("generator", "discriminator")])
def test_the_loss_curve_is_a_picture_of_each_term(tmp_path, terms):
    metrics = MetricsFile(tmp_path / "m.jsonl")
    losses = {f"{term}_loss": 0.5 for term in terms}
    for step in range(1, 6):
        metrics.log(record(step) | losses)
        metrics.log(record(step, "eval") | losses)
    metrics.close()
    plot_loss(tmp_path / "m.jsonl", tmp_path / "loss.png", title="test")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
