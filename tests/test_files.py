import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from smallbench import files
from smallbench.errors import ConflictError, ExitCode


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
