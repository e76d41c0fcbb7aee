"""The encoder that is measured: any Hugging Face model, by directory or hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from smallbench.errors import ConfigError, CredentialsError, DataError, UnavailableError
from smallbench.files import read_json
from smallbench.glue.classifier import build_classifier
from smallbench.glue.tasks import Task

POOLER = "pooler."
"""BERT's pooler belongs to a task: transformers draws it at random where a checkpoint has none, so
it counts neither in an encoder's fingerprint nor in its size."""


class Encoder:
    """A pretrained encoder, from which each run starts afresh.

    With `random_init` only its architecture is used: the baseline that pretraining must beat.
    """

    def __init__(self, path: str, *, random_init: bool = False) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self.path, self.random_init = path, random_init
        self.name = display_name(path)
        with _explained(path):
            self.config = AutoConfig.from_pretrained(path)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            if random_init:
                model = AutoModel.from_config(self.config)
            else:
                model = AutoModel.from_pretrained(path, dtype=torch.float32)
        for architecture in self.config.architectures or ():
            if architecture.endswith("ForSequenceClassification"):
                raise ConfigError(
                    f"{path} is already fine-tuned ({architecture}); its head may order labels "
                    "differently and its scores would not be comparable; give the encoder itself"
                )
        if not self.tokenizer.is_fast or self.tokenizer.pad_token_id is None:
            raise ConfigError(f"{path} has no fast tokenizer with a padding token")
        parameters = [p for name, p in model.named_parameters() if not name.startswith(POOLER)]
        self.num_parameters = sum(p.numel() for p in parameters)
        self.sha256 = "" if random_init else weights_sha256(model)

    @property
    def max_length(self) -> int | None:
        """Tokens that its position embeddings reach; None where it has no such limit."""
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None and "roberta" in self.config.model_type:
            positions -= self.config.pad_token_id + 1  # RoBERTa counts from behind the padding id
        return positions if positions and positions > 0 else None

    @property
    def has_token_types(self) -> bool:
        """Whether it tells a pair's two texts apart by their tokens' types."""
        known: bool = getattr(self.config, "type_vocab_size", 2) > 1
        return known and "token_type_ids" in self.tokenizer.model_input_names

    def classifier(self, task: Task) -> torch.nn.Module:
        """The encoder with a fresh head for `task`, from a `Batch` to logits."""
        return build_classifier(
            self.transformers_classifier(task), pads_left=self.tokenizer.padding_side == "left"
        )

    def transformers_classifier(self, task: Task) -> Any:
        """transformers' model with a fresh head; draws from PyTorch's global generator."""
        from transformers import AutoConfig, AutoModelForSequenceClassification

        names = task.label_names or ("score",)
        labels = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {label: i for i, label in enumerate(names)},
            "problem_type": "regression" if task.is_regression else "single_label_classification",
        }
        if self.random_init:
            config = AutoConfig.from_pretrained(self.path, **labels)
            model = AutoModelForSequenceClassification.from_config(config).float()
        else:
            with quiet_transformers():  # it warns that the head is new, which is the point
                model = AutoModelForSequenceClassification.from_pretrained(
                    self.path, dtype=torch.float32, **labels
                )
        return model


def display_name(model: str) -> str:
    """How tables name a model: an export by its recipe, run and step, anything else as given.

    So a result does not change its name with the directory that the model was read from.
    """
    marker = Path(model) / "smallbench.json"
    if not marker.is_file():
        return model
    export = read_json(marker)
    try:
        return f"{export['config']['recipe']} (run {export['run_id']}, step {export['step']:,})"
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{marker} is no marker of an export; export the run again") from None


def weights_sha256(model: torch.nn.Module) -> str:
    """A fingerprint of an encoder's weights, whatever file format they came from."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(POOLER):
            sha.update(f"{name} {tuple(tensor.shape)}".encode())
            sha.update(tensor.float().contiguous().numpy().tobytes())
    return sha.hexdigest()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say in one sentence why a model cannot be loaded."""
    path = Path(name)
    # The hub's ids are NAME or ORG/NAME; anything else can only be a directory.
    is_path = path.is_absolute() or name.startswith(".") or len(path.parts) > 2
    if is_path and not path.is_dir():
        raise DataError(
            f"model {name!r} is no directory; expected the --out of 'smallbench export'"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise DataError(
            f"{name} holds no Hugging Face model (no config.json) and no run (no run.json); "
            "expected the --out of 'smallbench export', or the --run_dir of a pretraining"
        )
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError) as error:
        text = str(error).strip()
        if "gated repo" in text or "401" in text:
            raise CredentialsError(
                f"the hub refused model {name!r}; run 'hf auth login' or set HF_TOKEN"
            ) from None
        kind = DataError if path.is_dir() else UnavailableError
        raise kind(
            f"model {name!r} cannot be loaded ({text.partition(chr(10))[0]}); expected a directory "
            "that 'smallbench export' wrote, or the id of a model on the Hugging Face hub"
        ) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings about new heads, no bars for reading a file."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
