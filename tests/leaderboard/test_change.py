"""A pull request may add only one entry's own files; checked in a local repository."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from smallbench.errors import DataError
from smallbench.leaderboard.change import read_request

ROOT = Path(__file__).parents[2]
ENTRY = (
    "entry.json", "runs.jsonl", "train_log.jsonl", "predictions/cola_seed-1_dev.tsv.gz",
    "plugins/my_idea.py",
)  # fmt: skip


class Repository:
    """A base with code, two entries and `verified.json`, and a request that is merged into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        self.write("README.md", "smallbench/a.py", "submissions/verified.json")
        self.entry("old")
        self.entry("other")
        self.commit()
        self.git("checkout", "-q", "-b", "request")

    def git(self, *words: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=self.folder, check=True, capture_output=True)

    def write(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.fsencode(f"{name} {path.exists()}"))

    def entry(self, slug: str) -> None:
        self.write(*(f"submissions/{slug}/{name}" for name in ENTRY))

    def link(self, name: str, target: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def commit(self) -> None:
        self.git("add", "-A", "-f")
        self.git("commit", "-q", "-m", "more")

    def merge(self) -> None:
        self.commit()
        self.git("checkout", "-q", "main")
        self.write("README.md")
        self.git("commit", "-q", "-m", "the base goes on meanwhile", "README.md")
        self.git("merge", "-q", "--no-ff", "-m", "merged", "request")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "data")


def rename_case(r):
    r.git("rm", "-q", "-r", "--cached", "submissions/old")
    r.git("commit", "-q", "-m", "away")
    (r.folder / "submissions" / "old").rename(r.folder / "submissions" / "Old")


def program(r):
    (r.folder / "submissions/new/runs.jsonl").chmod(0o755)


def submodule(r):
    r.git("init", "-q", "submissions/new/inner")
    (r.folder / "submissions/new/inner/a").write_text("a")
    inner = ["-C", "submissions/new/inner"]
    r.git(*inner, "add", "a")
    r.git(*inner, "commit", "-q", "-m", "a")


VANDALISM = {
    "another's entry deleted": (
        lambda r: shutil.rmtree(r.folder / "submissions/old"), "submissions/old exists"),
    "another's entry rewritten": (
        lambda r: r.write("submissions/old/entry.json"), "submissions/old exists"),
    "a file added to another's entry": (
        lambda r: r.write("submissions/old/predictions/x.tsv.gz"), "submissions/old exists"),
    "another's log replaced by a link": (
        lambda r: r.link("submissions/old/train_log.jsonl", "/etc/passwd"), "mode 120000"),
    "evil.html in the entry": (
        lambda r: r.write("submissions/new/evil.html"), "evil.html is not a file of an entry"),
    "conftest.py in the entry": (
        lambda r: r.write("submissions/new/conftest.py"), "conftest.py is not a file of an entry"),
    "conftest.py beside the entries": (
        lambda r: r.write("submissions/conftest.py"), "conftest.py is not a file of an entry"),
    "conftest.py among the plug-ins": (
        lambda r: r.write("submissions/new/plugins/conftest.py"), "is not a file of an entry"),
    "a test among the plug-ins": (
        lambda r: r.write("submissions/new/plugins/test_a.py"), "is not a file of an entry"),
    "a .gitattributes": (
        lambda r: r.write("submissions/.gitattributes"), ".gitattributes is not a file"),
    "a .gitattributes in the entry": (
        lambda r: r.write("submissions/new/.gitattributes"), ".gitattributes is not a file"),
    "a .gitmodules": (lambda r: r.write(".gitmodules"), ".gitmodules is not a file of an entry"),
    "a workflow": (
        lambda r: r.write(".github/workflows/x.yml"), "x.yml is not a file of an entry"),
    "code": (lambda r: r.write("smallbench/a.py"), "smallbench/a.py is not a file of an entry"),
    "a test": (lambda r: r.write("tests/test_a.py"), "tests/test_a.py is not a file of an entry"),
    "the words of the keepers": (
        lambda r: r.write("submissions/verified.json"), "verified.json is not a file of an entry"),
    "two entries": (lambda r: r.entry("newer"), "it touches 2 entries"),
    "predictions that collide by case": (
        lambda r: r.write("submissions/new/predictions/CoLA_seed-1_dev.tsv.gz"),
        "differ only in case"),
    "an entry that collides by case": (rename_case, "is not a file of an entry"),
    "submissions in capitals": (
        lambda r: r.write("Submissions/new/entry.json"), "is not a file of an entry"),
    "a link as entry.json": (
        lambda r: r.link("submissions/new/entry.json", "../old/entry.json"), "mode 120000"),
    "a program": (program, "mode 100755"),
    "a repository": (submodule, "is not a file of an entry"),
    "a folder below predictions": (
        lambda r: r.write("submissions/new/predictions/a/x.tsv.gz"), "is not a file of an entry"),
    "a slug that is a device of Windows": (
        lambda r: r.write("submissions/con/entry.json"), "submissions/con/entry.json has the name"),
    "predictions that are a device of Windows": (
        lambda r: r.write("submissions/new/predictions/AUX.tsv.gz"), "AUX.tsv.gz has the name"),
    "a plug-in that is a device of Windows": (
        lambda r: r.write("submissions/new/plugins/com1.x.py"), "com1.x.py has the name"),
    "a slug that is none": (
        lambda r: r.write("submissions/-x/entry.json"), "is not a file of an entry"),
    "a name with a line break": (
        lambda r: r.write("submissions/new/a\n::error::x"), "is not a file of an entry"),
    "a name that is not UTF-8": (
        lambda r: r.write(os.fsdecode(b"submissions/new/caf\xe9")), "is not a file of an entry"),
}  # fmt: skip


@pytest.mark.parametrize("name", VANDALISM)
def test_vandalism_beside_a_good_entry_is_refused(name, repository):
    vandalize, reason = VANDALISM[name]
    repository.entry("new")
    repository.commit()
    vandalize(repository)
    repository.merge()
    for keeper in (False, True):
        problems = read_request(repository.folder, keeper=keeper).problems
        if keeper and "exists" in reason:
            reason = "it touches 2 entries"
        assert any(reason in problem for problem in problems), problems
        assert all(problem.isprintable() for problem in problems)


def test_a_new_entry_alone_is_accepted_however_old_the_request_is(repository):
    repository.entry("new")
    repository.write("submissions/new/predictions/console.tsv.gz")
    repository.merge()
    request = read_request(repository.folder)
    assert (request.entry, request.problems) == ("new", ())


@pytest.mark.parametrize("act", ["change", "delete"])
def test_an_existing_entry_changes_only_with_a_keeper(act, repository):
    if act == "change":
        repository.write("submissions/old/entry.json")
    else:
        shutil.rmtree(repository.folder / "submissions/old")
    repository.merge()
    (problem,) = read_request(repository.folder).problems
    assert "needs a request by its owner" in problem
    request = read_request(repository.folder, keeper=True)
    assert (request.entry, request.problems) == ("old" if act == "change" else None, ())


def test_verified_is_changed_by_keepers_and_alone(repository):
    repository.write("submissions/verified.json")
    repository.merge()
    assert read_request(repository.folder).problems
    assert not read_request(repository.folder, keeper=True).problems


def test_a_request_without_an_entry_is_not_judged_here(repository):
    repository.write("smallbench/a.py", "docs/new.md")
    repository.merge()
    request = read_request(repository.folder)
    assert (request.entry, request.problems) == (None, ())


def test_a_link_in_place_of_the_folder_is_refused(repository):
    repository.git("mv", "submissions", "elsewhere")
    repository.link("submissions", "elsewhere")
    repository.merge()
    assert read_request(repository.folder).problems


def test_an_unmerged_folder_is_refused_with_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"git diff-tree failed in"):
        read_request(tmp_path)


# ---- the script of the workflow


def run_script(folder: Path, data: Path, *, status: int) -> subprocess.CompletedProcess[str]:
    """Run the last step with a `smallbench` that prints a command for the runner."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/submissions.yml").read_text())
    script = workflow["jobs"]["validate"]["steps"][-1]["run"]
    command = folder / "smallbench"
    command.write_text(f'#!/bin/sh\necho "$@" > {folder}/args\necho "::error::x"\nexit {status}\n')
    command.chmod(0o755)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder, capture_output=True, text=True, check=False,
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "DATA": str(data),
            "KEEPER": "false",
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        },
    )  # fmt: skip


def test_every_action_of_the_workflows_is_pinned_by_a_commit():
    texts = [path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")]
    actions = [found for text in texts for found in re.findall(r"uses: (\S+)", text)]
    assert len(actions) >= 8
    assert [one for one in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one)] == []


def test_the_label_of_a_keeper_counts_only_when_it_is_set():
    workflow = yaml.safe_load((ROOT / ".github/workflows/submissions.yml").read_text())
    assert workflow[True]["pull_request"]["types"].count("labeled") == 1  # YAML reads `on` as true
    expression = workflow["jobs"]["validate"]["steps"][-1]["env"]["KEEPER"]
    inner = expression.removeprefix("${{").removesuffix("}}").replace("&&", "and").strip()

    def value(action, label=None, present=("keeper",)):
        labels = [SimpleNamespace(name=name) for name in present]
        event = SimpleNamespace(
            action=action,
            label=SimpleNamespace(name=label),
            pull_request=SimpleNamespace(labels=labels),
        )
        return eval(inner, {"github": SimpleNamespace(event=event)})

    assert value("labeled", "keeper")
    assert not value("labeled", "question")
    for action in ("opened", "synchronize", "reopened"):
        assert not value(action), "the label was set for earlier commits"
    assert not value("unlabeled", "keeper")


@pytest.mark.parametrize("status", [0, 65])
def test_the_workflow_asks_the_job_and_shows_its_report_as_text(status, tmp_path):
    done = run_script(tmp_path, tmp_path / "data", status=status)
    assert done.returncode == status
    words = (tmp_path / "args").read_text().split()
    assert words == ["leaderboard", "change", str(tmp_path / "data"), "--glue=hub",
                     "--keeper=false"]  # fmt: skip
    first, *_, last = done.stdout.splitlines()
    assert first.removeprefix("::stop-commands::") == last.strip(":")
    assert "    ::error::x" in (tmp_path / "summary").read_text().splitlines()
