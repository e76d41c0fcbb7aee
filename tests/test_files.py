import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallbench import files, retry
from smallbench.errors import ConflictError, ExitCode, UnavailableError


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if files.TEMPORARY_MARK in p.name]


def test_a_written_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    files.write_bytes(path, b"\x00\xff" * 1000)
    assert path.read_bytes() == b"\x00\xff" * 1000
    assert leftovers(path.parent) == []


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail_half_way() -> None:
        with files.atomic_writer(path) as stream:
            stream.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with files.atomic_writer(path) as stream:
        stream.write(b"first half, ")
        stream.flush()
        assert not path.exists()
        stream.write(b"second half")
    assert path.read_text() == "first half, second half"


def test_a_writer_killed_in_the_middle_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    program = (
        "import os, sys; from pathlib import Path; from smallbench import files\n"
        "with files.atomic_writer(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'new'); stream.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
    assert path.read_text() == "old"
    # The mark says that it may be deleted.
    assert len(leftovers(tmp_path)) == 1


def test_json_is_readable_by_people_and_keeps_letters(tmp_path: Path) -> None:
    content = {"name": "Müller → 東京", "values": [1, 2.5, None, True]}
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "Müller → 東京" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_the_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * size).hexdigest()


def test_temporary_names_differ_and_stay_in_the_folder(tmp_path: Path) -> None:
    names = {files.temporary_sibling(tmp_path / "a") for _ in range(100)}
    assert len(names) == 100
    assert {name.parent for name in names} == {tmp_path}


def test_a_lock_has_one_holder_and_is_free_after_it_died(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    program = (
        "import sys; from pathlib import Path; from smallbench import files\n"
        "with files.exclusive_lock(Path(sys.argv[1]), 'taken'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConflictError, match="taken") as caught, files.exclusive_lock(lock, "taken"):
        pass
    assert caught.value.exit_code is ExitCode.CONFLICT
    holder.kill()
    holder.communicate()
    with files.exclusive_lock(lock, "taken"):
        pass


def test_files_get_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    """Whatever mode another library, or the source of a copy, gave them."""
    (tmp_path / "a").mkdir()
    private = tmp_path / "a" / "private"
    private.write_bytes(b"x")
    private.chmod(0o600)
    with files.atomic_directory(tmp_path / "b") as directory:
        shutil.copy(private, directory)
    files.sync_file(private)
    files.write_bytes(tmp_path / "c", b"x")
    expected = 0o666 & ~files._umask()
    for path in (private, tmp_path / "b" / "private", tmp_path / "c"):
        assert path.stat().st_mode & 0o777 == expected


def test_a_directory_replaces_another_and_all_its_new_parents_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", flushed.append)
    target = tmp_path / "a" / "b" / "target"
    for name in ("first", "second"):
        with files.atomic_directory(target) as directory:
            (directory / name).touch()
        assert [path.name for path in target.iterdir()] == [name]
    assert flushed[1:4] == [target.parent, target.parent.parent, tmp_path]
    assert flushed[5:] == [target.parent]


def test_a_link_to_a_directory_stays_and_the_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with files.atomic_directory(tmp_path / "link") as directory:
        (directory / "new").touch()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("number", [28, 122, 27, 30])
def test_disk_errors_of_every_library_are_one_sentence(number: int, tmp_path: Path) -> None:
    def by_torch() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch does

    def by_shutil() -> None:
        raise shutil.Error([("a", "b", f"[Errno {number}] {os.strerror(number)}: 'a'")])

    def by_safetensors() -> None:
        raise ValueError(f"I/O error: {os.strerror(number)} (os error {number})")

    for write in (by_torch, by_shutil, by_safetensors):
        with pytest.raises(UnavailableError), files.write_errors_explained(tmp_path):
            write()
    with pytest.raises(KeyError), files.write_errors_explained(tmp_path):
        raise KeyError("another error stays what it is")


def test_a_file_that_cannot_be_read_is_not_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(retry, "DELAYS_SECONDS", (0, 0))
    calls = []

    def fail(number: int, times: int) -> None:
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))

    files.read_retried(tmp_path, lambda: fail(116, 2))
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(UnavailableError, match="could not be read"):
        files.read_retried(tmp_path, lambda: fail(5, 9))
    with pytest.raises(FileNotFoundError):
        files.read_retried(tmp_path / "x", (tmp_path / "x").stat)
