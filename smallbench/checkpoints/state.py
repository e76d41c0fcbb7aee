"""The state of modules and generators by name, as in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights by name; a shared weight only under its first name."""
    first = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    state = module.state_dict()
    return {name: state[name].contiguous() for name in first if name in state}


def load_distinct(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `distinct_state`; raise `RuntimeError` if names or shapes differ."""
    names = distinct_state(module).keys()
    if names != state.keys():
        raise RuntimeError(f"weights {sorted(names ^ state.keys())} are on one side only")
    module.load_state_dict(dict(state), strict=False)


def random_state() -> dict[str, Tensor]:
    """Return the state of the CPU's generator, and of the current GPU's if there is one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: Mapping[str, Tensor]) -> None:
    """Restore the result of `random_state`."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
