"""A file written one tensor at a time equals that of safetensors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from smallbench.checkpoints.tensor_file import save_tensors


def test_the_file_equals_that_of_safetensors_byte_for_byte(tmp_path):
    tensors = {
        "layers.10.weight": torch.randn(3, 5),
        "layers.9.weight": torch.randn(7),
        "wort.mit.ü": torch.randn(2, 2),
        "scalar": torch.tensor(2.5),
    }
    save_tensors(tensors, tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"empty": torch.zeros(0, 4), "a": torch.ones(1)},
        {"b": torch.tensor([True, False, True]), "f": torch.randn(3), "h": torch.randn(3).half()},
        {"bf16": torch.randn(5).bfloat16(), "i": torch.arange(9), "u": torch.zeros(3).byte()},
        {"view": torch.randn(10)[2:8].view(2, 3), "transposed": torch.randn(4, 3).T},
    ],
    ids=lambda tensors: "-".join(tensors) or "none",
)
def test_safetensors_reads_the_saved_tensors(tensors, tmp_path):
    save_tensors(tensors, tmp_path / "file")
    back = load_file(tmp_path / "file")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
