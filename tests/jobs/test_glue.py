"""The glue job's flags: what each action needs, and which shard a pod does."""

import pytest

from jobs.glue import Options
from smallbench.errors import ConfigError, UsageError

MEASURE = {"model": "m", "glue": "g", "out": "o"}


def test_every_action_says_what_it_needs():
    for action, given, missing in [
        ("measure", {"glue": "g", "out": "o"}, "model"),
        ("show", {}, "run"),
        ("merge", {"run": ("a", "b")}, "out"),
        ("submit-file", {"out": "glue.zip"}, "run"),
        ("check-file", {}, "run"),
    ]:
        with pytest.raises(UsageError, match=f"'glue {action}' needs --{missing}"):
            Options(action=action, **given)
    with pytest.raises(UsageError, match="takes one --run"):
        Options(action="show", run=("a", "b"))


@pytest.mark.parametrize(
    ("flags", "index", "part"),
    [
        ({}, None, (1, 1)),
        ({}, "2", (1, 1)),  # an Indexed Job whose pods share one --out
        ({"shard": "3/8"}, None, (3, 8)),
        ({"shard": "1/1"}, "5", (1, 1)),
        ({"num_shards": 8}, "0", (1, 8)),
        ({"num_shards": 8}, "7", (8, 8)),
    ],
)
def test_the_shard_is_the_flags_or_the_jobs(flags, index, part, monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert Options(**MEASURE, **flags).part() == part


@pytest.mark.parametrize(
    ("flags", "index", "message"),
    [
        ({"shard": "0/8"}, None, "0/8 is none"),
        ({"shard": "9/8"}, None, "9/8 is none"),
        ({"shard": "three"}, None, "three/ is none"),
        ({"shard": "-1/2"}, None, "is none"),
        ({"num_shards": 8}, None, "goes with JOB_COMPLETION_INDEX"),
        ({"num_shards": 8}, "8", "9/8 is none"),
        ({"num_shards": 8, "shard": "1/8"}, "0", "give one"),
    ],
)
def test_a_shard_that_is_none_starts_nothing(flags, index, message, monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    with pytest.raises(UsageError, match=message):
        Options(**MEASURE, **flags)


@pytest.mark.parametrize("flags", [{"seeds": (1, 1)}, {"seeds": (-1,)}, {"learning_rate": ()}])
def test_seeds_and_rates_are_checked(flags):
    with pytest.raises(ConfigError, match=next(iter(flags))):
        Options(**MEASURE, **flags)
