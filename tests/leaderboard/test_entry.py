"""The schema, its typed view, and the written files."""

import dataclasses
import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import (
    ENTRY_FILE,
    SECTIONS,
    Entry,
    Stage,
    StoredRun,
    chained,
    entry_from_dict,
    entry_to_dict,
    link,
    predictions_bytes,
    schema,
)
from smallbench.leaderboard.folder import is_allowed
from smallbench.leaderboard.public_checks import link_findings, text_findings
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made


def objects(node, path="entry"):
    """Every object schema, by its place."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}/{key}")


def test_the_schema_is_one_and_leaves_no_object_open():
    jsonschema.Draft202012Validator.check_schema(schema())
    for path, node in objects(schema()):
        if not path.endswith("/config"):  # its keys are another version's; their values are bounded
            assert node["additionalProperties"] is False, path


def test_the_typed_view_has_the_fields_of_the_schema():
    properties = schema()["properties"]
    views = {**SECTIONS, "": Entry}
    for name, cls in views.items():
        node = properties[name] if name else schema()
        assert [f.name for f in dataclasses.fields(cls)] == list(node["properties"]), name
        optional = {"plugins", "choice_sha256", "pooling", "protocol"}
        if name == "finetune":
            optional.remove("protocol")
        if cls is Entry:
            optional = set(SECTIONS) - {"links", "model"}
        required = [key for key in node["properties"] if key not in optional]
        assert node["required"] == required, name
    stage = properties["pretrain"]["properties"]["ramps"]["items"]
    assert [f.name for f in dataclasses.fields(Stage)] == list(stage["properties"])
    line = schema()["$defs"]["run"]
    assert [f.name for f in dataclasses.fields(StoredRun)] == list(line["properties"])
    for tasks in (
        properties["reported"]["properties"]["scores"]["properties"],
        properties["finetune"]["properties"]["chosen"]["properties"],
        line["properties"]["task"]["enum"],
    ):
        assert list(tasks) == list(TASKS)


@pytest.mark.parametrize("seed", range(4))
def test_an_entry_is_read_back_as_it_was_written(seed, tmp_path):
    made = synthetic_entry(f"entry-{seed}", synthetic_gold(scale=0.01), seed=seed)
    content = json.loads((write_made(tmp_path, made) / ENTRY_FILE).read_text())
    jsonschema.Draft202012Validator(schema()).validate(content)
    assert entry_from_dict(content) == made.entry
    assert entry_to_dict(entry_from_dict(content)) == content


@pytest.mark.parametrize("url", [
    "https://example.org", "https://GitHub.com/a/b#readme", "https://lab.xn--p1ai/~a?b=c",
    "https://a-b.example.co.uk/x", "https://4chan.example/x",
])  # fmt: skip
def test_a_link_to_a_host_with_a_domain_is_allowed(url):
    assert is_allowed("links.code", url)


@pytest.mark.parametrize(
    "url", ["https://huggingface.co/org/model-1.5_b", "https://HuggingFace.co/org/model/"]
)
def test_a_link_to_weights_on_the_hub_is_allowed_and_not_flagged(url):
    assert is_allowed("links.huggingface", url)
    entry = synthetic_entry("entry", synthetic_gold(scale=0.01), seed=0).entry
    links = replace(
        entry.links, huggingface=url, huggingface_revision="0" * 40, wandb="https://WANDB.ai/x"
    )
    assert list(link_findings(replace(entry, links=links))) == []


def test_a_changed_cut_or_foreign_log_breaks_its_chain():
    records = [{"step": n, "loss": 1.0 / (n + 1)} for n in range(5)]
    lines = chained(records, config_digest="ab")
    assert lines[0]["sha256"] == link("ab", records[0])
    assert lines[3]["sha256"] == link(lines[2]["sha256"], records[3])
    assert chained(records[1:], config_digest="ab")[-1] != lines[-1]
    assert chained(records, config_digest="cd")[-1] != lines[-1]
    assert chained([{**records[0], "loss": 2.0}, *records[1:]], config_digest="ab")[-1] != lines[-1]


def test_equal_predictions_are_equal_bytes():
    values = np.array([0, 2, 1])
    assert predictions_bytes(TASKS["mnli"], values) == predictions_bytes(TASKS["mnli"], values)


@pytest.mark.parametrize("text", [
    "\U0001f525\ufe0f", "\U0001f468\u200d\U0001f52c", "...", "\u304b\u3099", "\u845b\U000e0100",
    "\u1019\u103c\u103d\u103e\u1031\u102c\u1037", "\u0f56\u0f66\u0f92\u0fb2\u0f74\u0f56\u0f66",
    "\u0936\u094d\u0930\u0940", "Nguye\u0302\u0303n", "\u05d1\u05bc\u05b8\u0591",
])  # fmt: skip
def test_a_name_in_any_script_is_allowed_and_not_flagged(text):
    """Emoji, Japanese, Burmese, Tibetan, Devanagari, Vietnamese and Hebrew, some in parts."""
    assert is_allowed("name", text)
    entry = synthetic_entry("entry", synthetic_gold(scale=0.01), seed=0).entry
    assert list(text_findings(replace(entry, name=text))) == []
