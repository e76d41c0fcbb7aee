"""What README and docs tell people to type exists: jobs, flags, files, folders and make targets."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallbench import plugins
from smallbench.jobs.base import JOBS, chosen, load
from smallbench.jobs.cli import resolve
from tests.cluster.kustomize import KUBECTL

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
OURS = {"smallbench", "sb"}
"""The console script, and docs/docker.md's alias for it."""
NOT_IN_THE_TREE = {"smallbench/sbom.cdx.json"}
"""Files of the image."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def commands(page: str) -> Iterator[str]:
    """Lines behind `$`, with those that continue them and without comments."""
    for block in re.findall(r"```console\n(.*?)```", text_of(page), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield re.sub(r"\s+# .*", "", line[2:])


def of_ours(lines: Iterator[str]) -> Iterator[list[str]]:
    """The words behind `smallbench`, on a machine or in a container, up to a shell's operator."""
    for line in lines:
        words = shlex.split(line)
        for at, word in enumerate(words[:-1]):
            if Path(word).name in OURS and words[at + 1] in JOBS:
                rest = words[at + 1 :]
                end = next((i for i, w in enumerate(rest) if w in {"&&", "|", "&", ";"}), None)
                yield rest[:end]


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-ins that the pages name, and the variable of an Indexed Job's pod."""
    for idea in (ROOT / "tests" / "plugins").glob("*.py"):
        shutil.copy(idea, tmp_path)
    shutil.copy(tmp_path / "gated_bert.py", tmp_path / "my_idea.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.setattr(plugins, "_GIVEN", set())
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")


@pytest.mark.usefixtures("users_folder")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_ours_is_accepted(page: str) -> None:
    for name, *words in of_ours(commands(page)):
        job, given = chosen(load(name), [word for word in words if word != "…"])
        if "…" not in words:
            words = given
        else:  # the example's words and flags stand for what is left out
            example = shlex.split(job.examples[0])[2:]
            _, example = chosen(load(name), example)
            flags = [word for word in given if word.startswith("--")]
            names = [flag.partition("=")[0] for flag in flags]
            words = [word for word in example if word.partition("=")[0] not in names] + flags
        resolve(job, [word.replace("…", "0" * 64) for word in words], {})


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_named_exists(page: str) -> None:
    """Commands within a sentence leave things out, but their job and flags exist."""
    for code in re.findall(r"`smallbench ([a-z0-9]+ [^`]*)`", text_of(page).replace("\n", " ")):
        name, *words = code.split()
        job, _ = chosen(load(name), words)
        _, example = chosen(load(name), shlex.split(job.examples[0])[2:])
        _, _, config = resolve(job, example, {})
        for flag in re.findall(r"--([\w.]+)", " ".join(words).partition("--flags")[0]):
            assert (
                flag in {"help", "dry_run", "plugin", "config"}
                or hasattr(job.options, flag)
                or (flag in job.options.__dataclass_fields__)
                or (config is not None and hasattr(config, flag.partition(".")[0]))
            ), (code, flag)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    names = set(re.findall(r"\b(?:k8s|docker|smallbench|tests|jobs)/[\w./-]*\w", text_of(page)))
    missing = {name for name in names if not (ROOT / name).exists()} - NOT_IN_THE_TREE
    assert {name for name in missing if "." in Path(name).name} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([^)]*))?\)", text_of(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{target}#{anchor}"


def test_the_index_names_every_page() -> None:
    index = text_of("docs/README.md")
    assert [page for page in PAGES[1:] if f"({Path(page).name}" not in index] == ["docs/README.md"]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in commands(page):
            words = shlex.split(line)
            if words[0] == "make":
                assert {w for w in words[1:] if "=" not in w} <= targets, line


def test_every_folder_that_is_applied_builds() -> None:
    folders = {
        match[1]
        for page in PAGES
        for line in commands(page)
        if (match := re.search(r"kubectl apply -k (\S+)", line))
    }
    assert len(folders) >= 3
    for folder in folders:
        done = subprocess.run([KUBECTL, "kustomize", folder], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_every_component_and_build_argument_is_explained() -> None:
    from smallbench.cluster.config import COMPONENTS

    for component in COMPONENTS:
        assert component in text_of("docs/kubernetes.md"), component
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name in re.findall(r"^ARG (\w+)=", dockerfile, re.MULTILINE):
        assert f"`{name}`" in text_of("docs/docker.md"), name


def test_the_boards_page_for_submitters_is_the_page_of_the_docs() -> None:
    page = ROOT / "smallbench" / "leaderboard" / "site" / "templates" / "submitting.md"
    assert page.samefile(ROOT / "docs" / "submitting.md")
