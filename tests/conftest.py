"""Shared setup: one thread, no network, no options from outside, and skips with reasons."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import browser, watched
from tests.docker.image import DOCKER
from tests.servers.s3 import ceph, ceph_bucket, moto, moto_bucket, no_server, proxy, s3_bucket
from tests.shared import shared_folder

__all__ = ["browser", "ceph", "ceph_bucket", "moto", "moto_bucket", "proxy", "s3_bucket", "watched"]

# Before torch is imported anywhere, and inherited by subprocesses: the order of a sum, and so its
# last bits, depends on the number of threads.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# DeepSpeed keeps the first accelerator of a process: tests of GPUs use processes of their own.
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
# A shell starts what it runs in the background with SIGINT ignored, and so would programs that a
# test starts and then interrupts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in [n for n in os.environ if n.startswith("SMALLBENCH_")]:
    if not name.startswith("SMALLBENCH_TEST_"):
        del os.environ[name]


# 25 generated cases a law in the inner loop, 100 with HYPOTHESIS_PROFILE=ci.
for profile, num_examples in {"quick": 25, "ci": 100}.items():
    settings.register_profile(
        profile,
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


LONG = {"docker", "s3server", "slow", "exhaustive"}
"""Markers whose tests run only if `-m` names them."""


INSTALLED_IN_CI = {"docker", "s3server", "browser"}
"""Markers whose tests fail in CI if the part is missing, instead of being skipped."""


collect_ignore = [] if find_spec("triton") else ["planning/test_triton.py"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests unless they are selected; skip tests whose parts are missing."""
    expression = config.getoption("markexpr")
    asked = {marker for marker in LONG if marker in expression}
    selected, deselected = [], []
    for item in items:
        markers = {mark.name for mark in item.iter_markers()} & LONG
        if "exhaustive" in markers:
            item.add_marker(pytest.mark.timeout(0))
        # One selected marker is enough, but exhaustive tests must always be selected.
        wanted = not markers or (
            markers & asked and ("exhaustive" in asked) >= ("exhaustive" in markers)
        )
        (selected if wanted else deselected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = selected
    lacks = {
        "gpu": no_gpu,
        "docker": no_docker,
        "s3server": no_server,
        "browser": no_browser,
        "real_data": no_real_data,
    }
    for marker, why_not in lacks.items():
        if "CI" in os.environ and marker in INSTALLED_IN_CI:
            continue
        marked = [item for item in items if item.get_closest_marker(marker)]
        # Looked for only if a test asks: finding a GPU imports torch.
        reason = why_not() if marked else None
        for item in marked if reason else []:
            item.add_marker(pytest.mark.skip(reason=reason))


def no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def no_docker() -> str | None:
    if not shutil.which(DOCKER):
        return "no docker command"
    engine = subprocess.run([DOCKER, "info"], capture_output=True, check=False, timeout=30)
    return None if engine.returncode == 0 else "no Docker engine answers"


def no_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return None if any(map(shutil.which, names)) else "no Chromium"


def no_real_data() -> str | None:
    folder = os.environ.get("SMALLBENCH_TEST_DATA")
    if not folder:
        return "SMALLBENCH_TEST_DATA names no folder"
    return None if Path(folder).is_dir() else f"SMALLBENCH_TEST_DATA={folder} is no folder"


@pytest.fixture
def test_data() -> Path:
    """The folder of real corpora and GLUE; for tests marked real_data."""
    return Path(os.environ["SMALLBENCH_TEST_DATA"])


@pytest.fixture
def no_wandb_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the user's W&B key, settings and address."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quick_runs() -> Iterator[None]:
    """Runs without the measurement of the peak FLOPs and the picture: two thirds of their time."""
    from smallbench.pretraining import pretrain as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "matrix_peak_flops", lambda *_: 1e12)
        patch.setattr(module, "plot_loss", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared directory of some hundred rows of 32 tokens, with a held-out split."""
    return shared_folder(tmp_path_factory, "corpus", _prepare_corpus) / "prepared"


def _prepare_corpus(folder: Path) -> None:
    from smallbench.data.config import PrepareConfig
    from smallbench.data.prepare import prepare

    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubcdfglmnprst", k=draw.randint(2, 9))) for _ in range(300)]
    documents = []
    for _ in range(120):
        topic = draw.sample(words, 30)
        documents.append(". ".join(" ".join(draw.choices(topic, k=9)) for _ in range(12)) + ".")
    (folder / "text.txt").write_text("\n\n".join(documents))
    config = PrepareConfig(
        corpus=str(folder / "text.txt"), vocab_size=300, sequence_length=32, eval_fraction=0.1
    )
    prepare(config, out=folder / "prepared", workers=1)
