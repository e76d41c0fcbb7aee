"""Computations with their own kernels for CPUs, under the names that papers use.

A model file calls `attend`, `Dropout` and `position_bias`, an objective `token_loss.token_loss`.
`dispatch` chooses the implementation: GPUs and compilers get PyTorch's own operators.
"""

from smallbench.models.kernels.attention import attend
from smallbench.models.kernels.disentangled import position_bias
from smallbench.models.kernels.dropout import Dropout

__all__ = ["Dropout", "attend", "position_bias"]
