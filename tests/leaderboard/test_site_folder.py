"""A build replaces only a site, whole or not at all; it is served on this machine only."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from smallbench.errors import DataError, UnavailableError, UsageError
from smallbench.jobs.leaderboard import ServeOptions
from smallbench.leaderboard.site import build as module
from smallbench.leaderboard.site.build import build_site
from smallbench.leaderboard.site.serve import server
from tests.leaderboard.conftest import ROOT, SITE_URL


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_entries_give_equal_bytes(entries, site, tmp_path):
    build_site(entries, tmp_path / "again", site_url=SITE_URL)
    assert tree(tmp_path / "again") == tree(site)


def test_a_failed_build_leaves_the_old_site_unchanged(entries, tmp_path, monkeypatch):
    out = tmp_path / "site"
    build_site(entries[:1], out)
    before = tree(out)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(module.exports, "csv_text", fail)
    with pytest.raises(OSError, match="disk full"):
        build_site(entries, out)
    assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_site_is_replaced_whole(site, entries, tmp_path):
    assert {path.name for path in site.iterdir()} == module.WRITTEN
    out = tmp_path / "site"
    build_site(entries, out)
    build_site(entries[:1], out)
    assert len(list((out / "entries").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


FOREIGN = {
    "a file": {"thesis.txt": "dear"},
    "a file beside a site": {"thesis.txt": "dear", "leaderboard.json": None},
    "a repository": {".git/HEAD": "ref", "index.html": "", "leaderboard.json": None},
    "a domain": {"CNAME": "example.org", "leaderboard.json": None},
    "another's marker": {"leaderboard.json": '{"players": []}'},
    "a marker that is a list": {"leaderboard.json": '["schema_version", "views"]'},
    "a marker that is no JSON": {"leaderboard.json": "views"},
    "no marker": {"index.html": "<p>mine"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_is_not_only_a_site_is_never_replaced(files, site, entries, tmp_path):
    out = tmp_path / "out"
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((site / name).read_text() if text is None else text)
    before = tree(out)
    with pytest.raises(DataError, match="choose another --out, or empty it"):
        build_site(entries[:1], out)
    assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_and_the_site_that_it_leads_to_is_replaced(entries, tmp_path):
    (link := tmp_path / "link").symlink_to(tmp_path / "site")
    for found in (entries, entries[:1]):
        build_site(found, link)
    assert link.is_symlink()
    assert len(list((tmp_path / "site" / "entries").iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"link", "site"}


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_the_folder_one_is_in_is_not_replaced(out, entries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the current directory"):
        build_site(entries[:1], Path(out))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "https://a.b/?q=1"])
def test_an_invalid_address_is_refused(url, entries, tmp_path):
    with pytest.raises(UsageError, match="Invalid --site_url"):
        build_site(entries, tmp_path / "site", site_url=url)


def test_the_job_serves_what_it_built_on_this_machine_only(tmp_path):
    command = [sys.executable, "-m", "smallbench.jobs.cli", "leaderboard", "serve", "--port=0"]
    process = subprocess.Popen(
        [*command, f"--submissions={ROOT}/submissions", f"--out={tmp_path}/site"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        built, address = process.stdout.readline(), process.stdout.readline().split()[0]
        count = len(list((ROOT / "submissions").iterdir()))
        assert built.startswith(f"{count} entries, 0 rejected")
        assert address.startswith("http://127.0.0.1:")
        with urlopen(address) as answer:
            assert answer.read() == (tmp_path / "site" / "index.html").read_bytes()
        with pytest.raises(UnavailableError, match="choose another --port"):
            server(tmp_path, port=int(address.rstrip("/").rpartition(":")[2]))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("port", [-1, 65_536, 99_999_999])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(UsageError, match=f"--port={port}: expected 0 to 65535"):
        ServeOptions(port=port)
