"""Check whether this machine can train, and say how to get what it lacks.

Lists Python and the packages, the processor, memory and disk, each GPU with its compute capability
and whether the installed PyTorch has kernels for it (the V100 is sm_70), and the device, precision
and threads that training would choose. Then it multiplies large matrices for a second; the MFU of a
run is relative to that rate.

It connects to nothing, unless --network asks whether the Hugging Face hub answers, or --storage
whether a bucket can be listed, written, read and cleared. If training cannot run, it ends with exit
code 69 and says what to do; if the storage refuses, with the code that training would end with. In
a container, --device=cuda checks that a GPU is there.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from smallbench.config import option
from smallbench.cores import available_cpus
from smallbench.errors import SmallbenchError, UnavailableError
from smallbench.jobs.base import Job, start
from smallbench.storage import open_storage
from smallbench.storage.config import StorageConfig
from smallbench.templates import from_template
from smallbench.tracking.wandb import has_key
from smallbench.unusable_gpu import unusable_card

TRAINING = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "pyarrow",
    "zstandard",
)
"""Packages that some step from text to score needs."""
OPTIONAL = {
    "matplotlib": "loss curves",
    "huggingface-hub": "export --push",
    "boto3": "s3:// URLs",
    "deepspeed": "recipes that offload",
    "wandb": "--tracker=wandb",
}
GIB = 1 << 30
SHARED_GIB = 1
"""Of /dev/shm, through which GPUs of one machine may exchange gradients; Docker gives 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig):
    """Flags of `smallbench doctor`."""

    json: bool = option(False, help="print the findings as JSON, for programs")
    network: bool = option(
        False, help="also ask whether the Hugging Face hub answers (5 s at most)"
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", help="device of training; with cuda a missing GPU is a problem"
    )
    storage: str | None = option(
        None, help="also check that runs can be stored there, as pretrain does", metavar="URL"
    )


def run(options: Options) -> None:
    """Print the findings. Raises the first problem that training would meet."""
    require_temporary_files()  # torch writes some when it is imported, and so do others
    problems: list[SmallbenchError] = []
    here, shm = Path.cwd(), Path("/dev/shm")  # noqa: S108  where Linux has it
    findings: dict[str, Any] = {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: installed_version(name) for name in (*TRAINING, *OPTIONAL)},
        "processor": processor(),
        "memory": memory(),
        "shared_memory": {"gib": round(shutil.disk_usage(shm).total / GIB, 2)}
        if shm.is_dir()
        else None,
        "disk": {
            "folder": str(here),
            "free_gib": round(shutil.disk_usage(here).free / GIB, 1),
            "is_writable": os.access(here, os.W_OK),
        },
    }
    if options.network:
        findings["network"] = network()
    if findings["packages"]["wandb"]:
        findings["wandb"] = {"has_key": has_key()}
    if options.storage is not None:
        findings["storage"] = {"url": options.storage, "problem": None}
        try:
            open_storage(options.storage, options).check()
        except SmallbenchError as error:
            findings["storage"]["problem"] = str(error)
            problems.append(error)
    if not findings["disk"]["is_writable"]:
        problems.append(
            UnavailableError(
                f"runs cannot be written to {here} as uid {os.getuid()}; start in a folder "
                "that you may write to (in a container: chown what is mounted at /scratch)"
            )
        )
    absent = [name for name in TRAINING if findings["packages"][name] is None]
    if absent:
        problems.append(
            UnavailableError(
                f"training cannot run: {', '.join(absent)} not installed; "
                "pip install 'smallbench[train]'"
            )
        )
    else:
        findings["gpus"] = gpus()
        findings["unusable_gpu"] = None if findings["gpus"] else unusable_card()
        try:
            findings["training"] = training(options.device)
        except SmallbenchError as error:
            problems.append(UnavailableError(f"training cannot run: {error}"))
    findings["problems"] = [str(problem) for problem in problems]
    if options.json:
        print(json.dumps(findings, indent=2))
    else:
        values = {**findings, "optional": OPTIONAL, "needed_shm": SHARED_GIB}
        print(from_template("smallbench.jobs", "doctor.txt", **values).rstrip())
    if problems:
        raise problems[0]


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Name, usable cores, and instruction sets that decide how fast bf16 and int8 are."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "usable_cores": available_cpus(),
        "instruction_sets": sorted(
            flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni", "bf16", "sve"}
        ),
    }


def memory() -> dict[str, float | None]:
    """Return the memory in GiB, and the limit of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    available, limit = None, None
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            available = round(int(line.split()[1]) * 1024 / GIB, 1)
    if cgroup.exists() and (text := cgroup.read_text().strip()).isdigit():
        limit = round(int(text) / GIB, 1)
    return {"total_gib": round(total, 1), "available_gib": available, "container_limit_gib": limit}


def require_temporary_files() -> None:
    """Raise `UnavailableError` if no folder for temporary files can be written."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UnavailableError(
            f"training cannot run: {error.strerror}; set TMPDIR to a folder that uid {os.getuid()} "
            "may write to (in a container: chown what is mounted at /scratch)"
        ) from None


def network() -> dict[str, Any]:
    """Return whether the Hugging Face hub answers."""
    from urllib.request import urlopen

    from huggingface_hub.constants import ENDPOINT  # honours HF_ENDPOINT

    try:
        with urlopen(ENDPOINT, timeout=5):  # noqa: S310  the library's own address
            return {"hub": ENDPOINT, "answers": True, "reason": None}
    except (OSError, ValueError) as error:  # no network; HF_ENDPOINT is not an address
        return {"hub": ENDPOINT, "answers": False, "reason": str(error)}


def gpus() -> list[dict[str, Any]]:
    """Return each CUDA device, and whether the installed PyTorch was built for it."""
    import torch

    from smallbench.train.precision import assert_compiled_for

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            assert_compiled_for(torch.device("cuda", index))
            reason = None
        except SmallbenchError as error:
            reason = str(error)
        found.append(
            {
                "name": properties.name,
                "capability": f"sm_{properties.major}{properties.minor}",
                "memory_gib": round(properties.total_memory / GIB, 1),
                "unusable_because": reason,
            }
        )
    return found


def training(device_name: str) -> dict[str, Any]:
    """Return what a run with that device would use, and its measured rate of matrix products."""
    import torch

    from smallbench.train.precision import (
        choose_device,
        choose_precision,
        has_fast_bf16,
        matrix_peak_flops,
    )

    built_for = ["cpu"]
    if torch.version.cuda is not None:  # its architectures are known only if it sees a GPU
        built_for = torch.cuda.get_arch_list() or [f"CUDA {torch.version.cuda}"]
    device = choose_device(device_name)
    chosen = choose_precision("auto", device)
    rates = {
        precision: round(matrix_peak_flops(device, precision) / 1e12, 3)
        for precision in dict.fromkeys(["fp32", chosen])
    }
    return {
        "device": str(device),
        "precision": chosen,
        "has_fast_bf16": has_fast_bf16(device),
        "threads": torch.get_num_threads(),
        "torch_built_for": built_for,
        "measured_tflops": rates,
    }


JOB = Job("doctor", Options, run)

if __name__ == "__main__":
    start(JOB)
