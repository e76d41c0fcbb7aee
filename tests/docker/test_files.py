"""What can be said of the image's files without building it; most of it holds for both variants."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import smallbench
from jobs import cli
from smallbench.errors import ConfigError
from smallbench.gpus import GPUS
from smallbench.train.precision import assert_compiled_for

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


@pytest.mark.parametrize("name", ["packages", "deepspeed", "torch-cpu"])
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
    assert {".ci/run", "docker/lock.sh", "docker/portable-g++"} <= set(scripts)
    for command in ([PROGRAMS / "shellcheck", *scripts], [PROGRAMS / "hadolint", "Dockerfile"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_compose_wires_the_run_to_its_store():
    values = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret"}
    text = re.sub(
        r"\$\{(\w+)(?::?[-?]([^}]*))?\}",
        lambda found: values.get(found[1], found[2]),
        (ROOT / "docker" / "compose.yaml").read_text(),
    )
    services = yaml.safe_load(text)["services"]
    store, bucket, run = services["store"], services["bucket"], services["pretrain"]
    for client in (bucket, run):
        assert client["image"] == "smallbench"
        address = urlsplit(client["environment"]["AWS_ENDPOINT_URL_S3"])
        assert services[address.hostname] is store
        assert f"--address=:{address.port}" in store["command"]
        keys = [client["environment"][name] for name in values]
        assert keys == [store["environment"][f"MINIO_ROOT_{name}"] for name in ("USER", "PASSWORD")]
    job, *flags = run["command"]
    _, options, _ = cli.resolve(cli.load(job), flags, {})
    assert f'Bucket="{urlsplit(options.storage).hostname}"' in bucket["entrypoint"][-1]
    assert run["stop_grace_period"] == "2m"
    assert options.grace_seconds < 120
    with_gpu = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())["services"]
    assert with_gpu.keys() <= services.keys()


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
        with pytest.raises(ConfigError, match=r"the V100 needs CUDA 12\.6"):
            assert_compiled_for(device)
    else:
        assert_compiled_for(device)
