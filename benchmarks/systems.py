"""The five systems as a training step, ours and that of the peer a user would pick instead.

Same network, batch, length, vocabulary, dropout, clipping and optimizer. The peers are
transformers' classes under autocast with their own losses: scores for all tokens everywhere. For
ELECTRA-DeBERTa the peer is the upstream project's step: generator and discriminator both at full
width, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from smallbench.batch import IGNORED, Batch
from smallbench.models.convert import target_of
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.masking import Vocabulary, micro_batches, step_generator
from smallbench.recipes import RECIPES
from smallbench.train.budget import Budget
from smallbench.train.config import AdamWConfig, PretrainConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.optim import build_adamw
from smallbench.train.precision import DTYPES
from smallbench.train.trainer import Trainer

SYSTEMS = ("bert", "roberta", "deberta", "electra", "electra-deberta")
LENGTH = 128
NUM_BATCHES = 4


@dataclass
class Program:
    """Something that does one optimizer step on one batch each time it is called."""

    step: Callable[[], float]
    """Returns the loss."""
    tokens_per_step: int
    flops_per_step: int
    """What the model needs by formula, the same for ours and the peer."""


def config_of(system: str) -> PretrainConfig:
    """The recipe of this name, or the paper's recipe of a system."""
    name = system if system in RECIPES else f"{system}-small"
    config: PretrainConfig = RECIPES[name]()
    if config.model.vocab_size is None:  # the tokenizer's
        config = replace(config, model=replace(config.model, vocab_size=8192))
    return config


def family_of(system: str) -> str:
    """The system of a recipe: electra of electra-tiny."""
    return system.removesuffix("-tiny").removesuffix("-small")


def vocabulary_for(config: PretrainConfig) -> Vocabulary:
    """Five special tokens at the beginning, as BERT's own would be somewhere."""
    assert config.model.vocab_size is not None
    return Vocabulary(
        size=config.model.vocab_size,
        pad_id=1,
        cls_id=2,
        sep_id=3,
        mask_id=4,
        special_ids=(0, 1, 2, 3, 4),
    )


def rows(config: PretrainConfig, count: int) -> np.ndarray:
    """Random text without padding, [count, LENGTH]."""
    size = config.model.vocab_size
    ids_BL = np.random.default_rng(0).integers(5, size, size=(count, LENGTH))
    ids_BL[:, 0], ids_BL[:, -1] = 2, 3
    return ids_BL


class _Cycle:
    """A batch source of a few prepared batches, so that only the step is timed."""

    def __init__(self, batches: list[list[Batch]]) -> None:
        self._batches = batches

    def read(self, position: int, fraction: float = 0.0) -> tuple[list[Batch], int]:
        return self._batches[position % len(self._batches)], position + 1


def trainer_of(
    config: PretrainConfig,
    *,
    batch_size: int,
    precision: str,
    device: torch.device,
    micro_batch_size: int | None = None,
    compile: bool = False,
) -> Trainer:
    """Our trainer with a new model, its optimizer and random text."""
    torch.manual_seed(0)
    vocabulary = vocabulary_for(config)
    objective: Any = OBJECTIVES[config.objective.objective](
        config.objective, config.model, vocabulary
    )
    engine = TorchEngine(objective, config.optim, device=device, precision=precision)
    if compile:
        objective.compile()
    text = rows(config, batch_size)
    batches = [
        micro_batches(objective.corrupt(text, step_generator(0, i)), micro_batch_size or batch_size)
        for i in range(NUM_BATCHES)
    ]
    objective.train()
    return Trainer(
        objective=objective,
        engine=engine,
        batches=_Cycle(batches),
        learning_rate=lambda step: 1e-4,
        budget=Budget(),
    )


def ours(
    system: str,
    *,
    batch_size: int,
    precision: str,
    device: torch.device,
    compile: bool = False,
) -> Program:
    """Our trainer's step."""
    trainer = trainer_of(
        config_of(system),
        batch_size=batch_size,
        precision=precision,
        device=device,
        compile=compile,
    )
    (batch,), _ = trainer.batches.read(0)
    return Program(
        step=lambda: trainer.train_step().loss.item(),
        tokens_per_step=batch_size * LENGTH,
        flops_per_step=trainer.objective.train_flops(batch),
    )


class _TheirMaskedLM(nn.Module):
    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.model = _theirs(config.model, head="tokens")

    def forward(self, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = self.model(
            input_ids=batch.input_ids, token_type_ids=batch.token_type_ids, labels=batch.labels
        ).loss
        return loss


class _TheirElectra(nn.Module):
    """A generator and a discriminator that share their embeddings, as ELECTRA's users build it."""

    def __init__(self, config: PretrainConfig, *, width: float) -> None:
        super().__init__()
        self.generator = _theirs(config.model.narrowed(width), head="tokens")
        self.discriminator = _theirs(config.model, head="replaced")
        ours_, theirs_ = (m.base_model.embeddings for m in (self.discriminator, self.generator))
        theirs_.word_embeddings = ours_.word_embeddings
        self.generator.tie_weights()
        self.head = None
        if "Deberta" in type(self.discriminator).__name__:
            size = config.model.hidden_size
            self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 1))

    def forward(self, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        types = batch.token_type_ids
        logits = self.generator(input_ids=batch.input_ids, token_type_ids=types).logits
        chosen = batch.labels != IGNORED
        generator_loss = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED
        )
        with torch.no_grad():
            weights = logits[chosen].float().softmax(dim=-1)
            sampled = torch.multinomial(weights, 1).squeeze(1)
        ids = batch.input_ids.clone()
        ids[chosen] = sampled
        original = torch.where(chosen, batch.labels, batch.input_ids)
        labels = (ids != original).float()
        output = self.discriminator(input_ids=ids, token_type_ids=types)
        if self.head is None:
            scores = output.logits
        else:
            scores = self.head(output.last_hidden_state).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(scores.float(), labels)
        return generator_loss + 50 * loss


def _theirs(model: Any, *, head: str) -> nn.Module:
    """transformers' class of the same network, with the recipe's dropout."""
    target = target_of(model, head=head, pad_token_id=1)
    dropout = {
        "hidden_dropout_prob": model.hidden_dropout_prob,
        "attention_probs_dropout_prob": model.attention_probs_dropout_prob,
    }
    model_class = getattr(transformers, target.class_name)
    built: nn.Module = model_class(model_class.config_class(**(dict(target.config) | dropout)))
    return built


def theirs(system: str, *, batch_size: int, precision: str, device: torch.device) -> Program:
    """The peer's step: transformers' classes, or the upstream project's for ELECTRA-DeBERTa."""
    torch.manual_seed(0)
    config = config_of(system)
    module: nn.Module
    if family_of(system) == "electra":
        settings: Any = config.objective
        module = _TheirElectra(config, width=settings.generator_width)
    elif family_of(system) == "electra-deberta":
        module = _TheirElectra(config, width=1.0)
    else:
        module = _TheirMaskedLM(config)
    module.to(device).train()
    assert isinstance(config.optim, AdamWConfig)  # the five systems train with AdamW
    optimizer = build_adamw(module, config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    objective: Any = OBJECTIVES[config.objective.objective](
        config.objective, config.model, vocabulary_for(config)
    )
    text = rows(config, batch_size)
    host = [objective.corrupt(text, step_generator(0, i)) for i in range(NUM_BATCHES)]
    flops = objective.train_flops(micro_batches(host[0], batch_size)[0])
    batches = [replace(batch, uniforms=None).to(device) for batch in host]
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        low = precision != "fp32"
        context = torch.autocast(device.type, dtype=DTYPES[precision]) if low else nullcontext()
        with context:
            loss = module(batches[count % NUM_BATCHES])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), config.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Program(step, batch_size * LENGTH, flops)
