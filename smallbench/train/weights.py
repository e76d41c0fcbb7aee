"""The weights of a module by name, with one that several parts share kept once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights by name, one that several parts share under its first name alone."""
    first = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    state = module.state_dict()
    return {name: state[name].contiguous() for name in first if name in state}


def load_distinct(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `distinct_state`; raises `RuntimeError` where names or shapes do not fit."""
    names = distinct_state(module).keys()
    if names != state.keys():
        raise RuntimeError(f"weights {sorted(names ^ state.keys())} are on one side only")
    module.load_state_dict(dict(state), strict=False)
