"""The table of GPUs: every row is consistent, and a driver's name finds its own row."""

import pytest

from smallbench.errors import ConfigError
from smallbench.gpus import GPUS, gpu_of, gpu_of_device, gpus_of_device


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("Tesla T4", "t4-16gb"),
        ("Tesla P100-PCIE-16GB", "p100-pcie-16gb"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx-2080ti"),
        ("NVIDIA GeForce RTX 2080", "rtx-2080-8gb"),
        ("NVIDIA GeForce RTX 3070", "rtx-3070-8gb"),
        ("NVIDIA GeForce RTX 4060", "rtx-4060-8gb"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060ti-16gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        # Other cards, of which the table has a near relative.
        ("NVIDIA A100X", None),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_a_drivers_name_finds_its_own_row(device_name, name):
    found = gpu_of_device(device_name)
    assert (found and found.name) == name
    assert len(gpus_of_device(device_name)) <= 1


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_card_is_faster_in_fewer_bits_and_knows_bf16_from_ampere_on(gpu):
    peaks = gpu.peak_tflops
    assert peaks["fp16"] > peaks["fp32"] > 0
    assert ("bf16" in peaks) == (gpu.capability >= (8, 0))
    assert gpu.default_precision in peaks
    # 8 to 150 billion bytes, 50 to 1000 W: a slip of a unit would leave these.
    assert 8e9 < gpu.memory_bytes < 1.6e11
    assert 50 < gpu.tdp_watts < 1000
    assert 2e11 < gpu.bandwidth < 1e13
    assert gpu.link_bandwidth < gpu.bandwidth


def test_an_unknown_card_or_precision_is_a_sentence():
    with pytest.raises(ConfigError, match=r"Unknown GPU 'v100-16g'; did you mean v100-16gb\?"):
        gpu_of("v100-16g")
    with pytest.raises(ConfigError, match="t4-16gb has no bf16; use fp16, fp32 or auto"):
        gpu_of("t4-16gb").peak_flops("bf16")


def test_half_a_name_lists_the_cards_that_have_it_and_no_other():
    with pytest.raises(ConfigError, match=r"mean v100-16gb or v100-32gb or v100-pcie-16gb or"):
        gpu_of("v100")
    with pytest.raises(ConfigError, match=r"did you mean rtx-4090\?"):
        gpu_of("4090")
    for name in ("rtx3080", "gtx-970", "8gb card", ""):
        with pytest.raises(ConfigError, match=f"Unknown GPU '{name}'; expected one of: p100"):
            gpu_of(name)
    for name in ("V100-16GB", "v100_16gb", "Tesla V100-SXM2-16GB"):
        assert gpu_of(name).name == "v100-16gb"
