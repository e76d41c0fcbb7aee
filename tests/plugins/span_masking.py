"""Masking of whole spans (SpanBERT, Joshi et al. 2020): the neighbours of a target hide too."""

from dataclasses import dataclass

import numpy as np

from smallbench.config import option, require
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.objectives.masking import BoolArray, FloatArray


@dataclass(frozen=True)
class SpanConfig(MaskedLMConfig):
    """Masked-language modelling's keys and the length of a span."""

    mean_span: float = option(3.8, help="mean length of a span in tokens")  # SpanBERT, §3.1
    longest_span: int = option(10, help="longer spans are cut", least=1)  # SpanBERT, §3.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mean_span >= 1, "objective.mean_span", self.mean_span, "at least 1")


class SpanMasking(MaskedLM):
    """Masked-language modelling whose targets come in spans."""

    config: SpanConfig

    def choose(
        self,
        candidates_BL: BoolArray,
        fraction: float | FloatArray,
        generator: np.random.Generator,
    ) -> BoolArray:
        rows = zip(candidates_BL, np.broadcast_to(fraction, len(candidates_BL)), strict=True)
        return np.stack([self.choose_in_row(row, rate, generator) for row, rate in rows])

    def choose_in_row(
        self, candidates_L: BoolArray, fraction: float, generator: np.random.Generator
    ) -> BoolArray:
        """Draw spans until `fraction` of the row's candidates is chosen, at least one."""
        chosen_L = np.zeros_like(candidates_L)
        num_candidates = int(candidates_L.sum())
        num_wanted = min(max(1, round(fraction * num_candidates)), num_candidates)
        while chosen_L.sum() < num_wanted:
            length = min(generator.geometric(1 / self.config.mean_span), self.config.longest_span)
            start = generator.integers(len(candidates_L))
            span = np.arange(start, min(start + length, len(candidates_L)))
            span = span[candidates_L[span] & ~chosen_L[span]]
            chosen_L[span[: num_wanted - chosen_L.sum()]] = True
        return chosen_L
