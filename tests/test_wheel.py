"""What pip installs: one top-level package, which shadows nothing of a user's."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_its_jobs_and_manifests(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, f"--wheel-dir={tmp_path}", str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"smallbench"}
    for path in ("k8s/base/kustomization.yaml", "k8s/policies/role.json", "jobs/pretrain.py"):
        assert f"smallbench/{path}" in names
    package = ROOT / "smallbench"
    for template in (*package.glob("**/templates/*"), *(package / "jobs").glob("templates/*")):
        assert template.relative_to(ROOT).as_posix() in names
    (tmp_path / "jobs.py").write_text("mine = True\n")
    program = "import jobs, smallbench.jobs.cli as cli; assert jobs.mine; cli.entry(['--help'])"
    for line in (["-c", program], ["-m", "smallbench.jobs.pretrain", "--help"]):
        done = subprocess.run(
            [sys.executable, *line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{tmp_path}/installed"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: smallbench")
