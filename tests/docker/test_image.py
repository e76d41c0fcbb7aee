"""What `docker run smallbench` promises, tried on the image of the committed Dockerfile."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from uuid import uuid4

import pytest

import smallbench
from smallbench.glue.samples import write_sample_glue
from tests.docker import image as built
from tests.docker.conftest import RESTRICTED, UID, owned
from tests.docker.image import docker

pytestmark = pytest.mark.docker

TINY = [
    "--sequence_length=32", "--model.hidden_size=32", "--model.intermediate_size=64",
    "--model.embedding_size=16", "--model.num_hidden_layers=1", "--train.global_batch_size=8",
    "--train.num_eval_rows=16",
]  # fmt: skip


def inspect(name: str, kind: str = "image") -> dict:
    return json.loads(docker(kind, "inspect", name).stdout)[0]


def test_nothing_but_scratch_can_be_written(run, scratch):
    program = """
import os, pathlib
assert (os.getuid(), os.getgid()) == (10001, 10001)
assert os.getcwd() == "/scratch"
for name in ("HOME", "TMPDIR", "HF_HOME", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "WANDB_DIR"):
    assert pathlib.Path(os.environ[name]).is_relative_to("/scratch"), name
for folder in ("/", "/tmp", "/opt/smallbench", "/var/tmp"):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
pathlib.Path("written").touch()
"""
    run("-c", program, options=("--entrypoint=python",))
    assert (scratch / "written").stat().st_uid == UID


def test_doctor_finds_nothing_missing(run, ceph_bucket):
    done = run("doctor", "--json", f"--storage={ceph_bucket.url}/runs", options=store(ceph_bucket))
    findings = json.loads(done.stdout)
    assert findings["problems"] == []
    assert findings["disk"] | {"free_gib": 0} == {
        "folder": "/scratch", "free_gib": 0, "is_writable": True
    }  # fmt: skip
    assert findings["training"]["torch_built_for"] == ["cpu"]
    assert None not in findings["packages"].values()


def test_a_container_may_run_as_the_owner_of_the_mounted_folder(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    os.chown(folder, 4242, 4242)
    done = run("doctor", "--json", folder=folder, options=("--user=4242:4242",))
    assert json.loads(done.stdout)["problems"] == []


def test_doctor_reports_missing_parts_of_a_container(run, tmp_path, ceph_bucket):
    no_gpu = run("doctor", "--device=cuda", code=69)
    assert "torch finds no GPU" in no_gpu.stderr
    foreign = tmp_path / "foreign"
    foreign.mkdir()  # root's
    assert "chown" in run("doctor", folder=foreign, code=69).stderr
    refused = (*store(ceph_bucket), "--env=AWS_SECRET_ACCESS_KEY=wrong")
    done = run("doctor", f"--storage={ceph_bucket.url}/runs", options=refused, code=77)
    assert "SignatureDoesNotMatch" in done.stderr
    assert "wrong" not in done.stdout + done.stderr


def test_the_image_has_the_documentation_that_quickstart_prepares(run):
    done = run(
        "prepare", "--corpus=installed-docs", "--max_documents=150", "--vocab_size=300",
        "--out=docs", "--workers=1",
    )  # fmt: skip
    assert "smallbench pretrain" in done.stdout


def store(bucket) -> tuple[str, ...]:
    """How a container is told of a store."""
    variables = {**bucket.server.environment, "AWS_ENDPOINT_URL_S3": bucket.server.endpoint_url}
    return tuple(f"--env={name}={value}" for name, value in variables.items())


@pytest.fixture
def corpus(tmp_path, run):
    """Prepared by a container, of text that is mounted to be read only."""
    draw = random.Random(0)
    words = ["the", "of", "a", "small", "large", "model", "reads", "writes", "old", "text", "page"]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(draw.choices(words, k=120)) + "." for _ in range(150)))
    out = owned(tmp_path / "corpus")
    run(
        "prepare", "--corpus=/text.txt", "--out=/corpus/tiny", "--vocab_size=200",
        "--sequence_length=32", "--eval_fraction=0.1", "--workers=1",
        options=(f"--volume={text}:/text.txt:ro", f"--volume={out}:/corpus"),
    )  # fmt: skip
    return out / "tiny"


def test_a_stopped_container_and_its_successor_end_with_the_same_weights(
    run, image, scratch, corpus, tmp_path, ceph_bucket
):
    """From text to scores; the successor finds nothing but the bucket."""
    mounts = (*store(ceph_bucket), f"--volume={corpus}:/corpus:ro")
    pretrain = [
        "pretrain", "bert-tiny", "--data=/corpus", "--max_steps=300", "--train.save_every_steps=50",
        f"--storage={ceph_bucket.url}/runs", "--lease_seconds=6", *TINY,
    ]  # fmt: skip
    run(*pretrain, "--run_dir=whole", options=mounts)

    name = f"smallbench-test-{uuid4().hex[:8]}"
    docker(
        "run", "--detach", f"--name={name}", *RESTRICTED, f"--volume={scratch}:/scratch", *mounts,
        image, *pretrain, "--run_dir=stopped", "--grace_seconds=60",
    )  # fmt: skip
    try:
        wait_for_step(scratch / "stopped", 60)
        docker("stop", "--time=60", name)
        state = inspect(name, "container")["State"]
        assert state["ExitCode"] == 75, docker("logs", name).stderr
    finally:
        docker("rm", "--force", name)
    shutil.rmtree(scratch / "stopped")  # another machine's disk is empty
    run(*pretrain, "--run_dir=stopped", options=mounts)
    record = json.loads((scratch / "stopped" / "run.json").read_text())
    assert 60 <= record["attempts"][1]["first_step"] < 300
    assert record["attempts"][0]["git_commit"] == built.COMMIT
    assert final_weights(scratch / "stopped") == final_weights(scratch / "whole")

    run("export", f"--run={ceph_bucket.url}/runs/stopped", "--out=export", options=mounts)
    glue = tmp_path / "glue"
    write_sample_glue(glue)
    done = run(
        "glue", "--model=export", "--glue=/glue", "--out=results", "--tasks=cola,stsb",
        "--seeds=1", "--epochs=1", "--max_train_examples=64",
        options=(f"--volume={glue}:/glue:ro",),
    )  # fmt: skip
    assert "STS-B" in done.stdout


def wait_for_step(run_dir: Path, step: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        beat = run_dir / "heartbeat.json"
        if beat.exists() and json.loads(beat.read_text())["step"] >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} within two minutes")


def final_weights(run_dir: Path) -> str:
    manifest = run_dir / "commits" / "step-0000000300.json"
    return json.loads(manifest.read_text())["files"]["module.safetensors"]["sha256"]


def test_offloading_needs_no_compiler(run, image, corpus, tmp_path):
    mount = (f"--volume={corpus}:/corpus:ro",)
    for program in ("gcc", "g++", "clang", "cc"):
        run("-c", f"! command -v {program}", options=("--entrypoint=sh",))
    run(
        "pretrain", "bert-tiny", "--data=/corpus", "--run_dir=offloaded", "--max_steps=3",
        "--offload=optimizer", *TINY, options=mount,
    )  # fmt: skip
    compiling = run(
        "pretrain", "bert-tiny", "--data=/corpus", "--run_dir=compiled", "--max_steps=3",
        "--train.compile=true", *TINY, options=mount, code=69,
    )  # fmt: skip
    assert "leave train.compile out" in compiling.stderr


def test_the_compiled_optimizer_runs_on_any_cpu_with_avx2(run, scratch):
    """The machine that builds may have AVX-512: registers zmm0 to zmm31."""
    copy = "cp /opt/smallbench/lib/python3*/site-packages/deepspeed/ops/adam/cpu_adam_op*.so ."
    run("-c", copy, options=("--entrypoint=sh",))
    (op,) = scratch.glob("cpu_adam_op*.so")
    code = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", op], capture_output=True, check=True
    ).stdout
    assert b"%ymm" in code
    assert b"%zmm" not in code


def test_health_is_a_heartbeat_beside_a_lock_that_is_held(image, run, scratch):
    assert inspect(image)["Config"]["Healthcheck"]["Test"] == ["CMD", "healthy"]
    run_dir = owned(scratch / "run")
    healthy = {"options": ("--entrypoint=healthy",)}
    run(**healthy)
    with (run_dir / "lock").open("a") as lock:
        (run_dir / "lock").chmod(0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        (run_dir / "heartbeat.json").touch()
        run(**healthy)
        long_ago = time.time() - 3600
        os.utime(run_dir / "heartbeat.json", (long_ago, long_ago))
        run(**healthy, code=1)
    run(**healthy)  # nobody trains there any more


def test_labels_say_what_it_is(image):
    labels = inspect(image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == smallbench.__version__
    assert labels["org.opencontainers.image.revision"] == built.COMMIT
    assert labels["org.opencontainers.image.created"] == built.CREATED
    assert labels["org.opencontainers.image.source"] == built.SOURCE


def test_the_sbom_lists_the_installed_packages(run):
    """A CycloneDX file that the build wrote; ourselves are its subject."""
    where = "/usr/share/doc/smallbench/sbom.cdx.json"
    listed = json.loads(run(where, options=("--entrypoint=cat",)).stdout)
    assert listed["bomFormat"] == "CycloneDX"
    assert listed["metadata"]["component"]["name"] == "smallbench"
    program = (
        "import importlib.metadata as m; print([(d.name, d.version) for d in m.distributions()])"
    )
    installed = dict(ast.literal_eval(run("-c", program, options=("--entrypoint=python",)).stdout))
    del installed["smallbench"]
    assert {c["name"]: c["version"] for c in listed["components"]} == installed
    assert not {"cyclonedx-bom", "lxml"} & installed.keys()


def test_a_changed_source_changes_no_layer_of_packages(image, tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    for name in ("Dockerfile", "LICENSE", "README.md", "pyproject.toml", ".dockerignore"):
        shutil.copy(built.ROOT / name, context)
    for name in ("benchmarks", "docker", "docs", "jobs", "k8s", "smallbench"):
        shutil.copytree(built.ROOT / name, context / name, symlinks=True)
    with (context / "jobs" / "__init__.py").open("a") as stream:
        stream.write(f"# {uuid4()}\n")
    tag = f"{built.IMAGE}-changed"
    built.build(context, tag)
    try:
        before, after = (inspect(name)["RootFS"]["Layers"] for name in (image, tag))
    finally:
        docker("rmi", tag)
    differing = [old != new for old, new in zip(before, after, strict=True)]
    sizes = docker("history", "--no-trunc", "--format={{.CreatedBy}}", image).stdout
    assert sum(differing) == 1, sizes


@pytest.fixture(scope="module")
def layers(image, tmp_path_factory):
    """The image as it is moved about, unpacked: layers, configuration and history."""
    folder = tmp_path_factory.mktemp("saved")
    docker("save", f"--output={folder}/image.tar", image)
    with tarfile.open(folder / "image.tar") as archive:
        archive.extractall(folder, filter="data")
    (folder / "image.tar").unlink()
    yield folder
    shutil.rmtree(folder)


def names_of(layers: Path) -> dict[str, tarfile.TarInfo]:
    found = {}
    for layer in layers.glob("*/layer.tar"):
        with tarfile.open(layer) as archive:
            found |= {member.name: member for member in archive}
    return found


def test_no_layer_contains_the_secrets_of_the_build(layers):
    needles = [built.CANARY.encode(), *foreign_certificates()]
    for path in (p for p in layers.rglob("*") if p.is_file()):  # layers, configuration, history
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path


def foreign_certificates() -> list[bytes]:
    """A line of each certificate that this machine trusts and Debian does not bring."""
    shipped = "".join(p.read_text() for p in Path("/usr/share/ca-certificates").rglob("*.crt"))
    bodies = re.findall(r"-----BEGIN CERTIFICATE-----\n(.*?)\n--", built.certificates(), re.DOTALL)
    lines = [body.splitlines()[len(body.splitlines()) // 2] for body in bodies]
    return [line.encode() for line in lines if line not in shipped]


UNWANTED = re.compile(
    r"""
      (^|/)(pip\.conf|\.pip|\.pypirc|\.netrc|auth\.conf|\.aws|\.docker|\.git-credentials|\.ssh)(/|$)
    | (^|/)(\.cache|torch_extensions)/ | (^|/)(build\.ninja|\.ninja_log)$
    | \.(o|a|gch|deb|whl)$
    | ^usr/bin/(.*gcc|.*g\+\+|cc|c\+\+|as|ld|make|pip3?)$ | ^opt/smallbench/bin/pip | ^build/
    | ^opt/smallbench/.*/(tests|torch/test)/
    | ^(tmp|var/tmp|root/\.\w+/|run/secrets|var/lib/apt/lists|var/cache/apt|scratch)/
    """,
    re.VERBOSE,
)


def test_no_layer_holds_caches_credentials_tests_or_a_compiler(layers):
    members = names_of(layers)
    held = [n for n, member in members.items() if UNWANTED.search(n) and member.size]
    assert held == []
    apt = {Path(name).name for name in members if name.startswith("etc/apt/apt.conf.d/")}
    assert apt <= {"01autoremove", "70debconf"}, "no settings but the packages' own"
    assert [name for name in members if name.endswith("torch/__init__.py")], "it looks at them all"
