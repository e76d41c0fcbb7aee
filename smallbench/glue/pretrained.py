"""The encoder to evaluate: any Hugging Face model, by directory or hub id."""

from __future__ import annotations

import copy
import logging
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from smallbench.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    SmallbenchError,
    UnavailableError,
)
from smallbench.files import read_json
from smallbench.glue.classifier import Foreign, build_classifier
from smallbench.glue.features import Features
from smallbench.glue.fingerprint import POOLER, files_sha256, weights_sha256
from smallbench.glue.tasks import Task
from smallbench.glue.tokens import check_token_ids, load_tokenizer, settle_padding
from smallbench.glue.weights import Weights, check_values, find_file, first_line, read_weights
from smallbench.models.named import check_model_name

TRIAL_LENGTH = 16
"""Tokens of the first trial; an error at this length does not come from the length."""


@dataclass(frozen=True)
class _Names:
    prefix: str
    """Prefix of the encoder's weights."""
    head: frozenset[str]
    outputs: frozenset[str]
    """Weights of the head with one row for each label."""
    expected: frozenset[str]
    """All names; those of the encoder also without their prefix."""
    numbers: frozenset[str]
    """Those of `expected` that are floating point."""


class PretrainedEncoder:
    """A pretrained encoder; each fine-tuning run starts from its weights.

    With `random_init` only its architecture is used: the baseline that pretraining must beat.
    Raises `DataError` if a weight of the encoder is missing from its files, or if anything else
    would make it a different model from the one that was trained.
    """

    def __init__(
        self, path: str, *, random_init: bool = False, trust_remote_code: bool = False
    ) -> None:
        self.path, self.random_init = path, random_init
        self.trust_remote_code = trust_remote_code
        self.name = display_name(path)
        self._largest_accepted = 0
        with _explained(path):
            self.config = _load_config(path, trust_remote_code)
            self.tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
            settle_padding(path, self.config, self.tokenizer)
            self._class = _classifier_class(path, self.config, trust_remote_code)
            self._weights = None if random_init else self._read_weights()
            with torch.random.fork_rng():
                model = self._load()
        body = model.base_model
        check_token_ids(path, self.tokenizer, _num_embeddings(path, body))
        self.has_token_types = _takes_token_types(model, self.tokenizer)
        parameters = [p for name, p in body.named_parameters() if not name.startswith(POOLER)]
        self.num_parameters = sum(p.numel() for p in parameters)
        self.sha256 = "" if random_init else weights_sha256(body)
        self.files_sha256 = files_sha256(path, self.tokenizer, has_code=trust_remote_code)

    def classifier(self, task: Task, *, pooling: str | None = None) -> torch.nn.Module:
        """Return the encoder with a new head for `task`: a module from a `Batch` to logits."""
        return build_classifier(
            self.transformers_classifier(task),
            pads_left=self.tokenizer.padding_side == "left",
            pooling=pooling,
        )

    def transformers_classifier(self, task: Task) -> Any:
        """Return transformers' model with a new head, drawn from PyTorch's global generator."""
        return self._load(
            task.label_names or ("score",),
            "regression" if task.is_regression else "single_label_classification",
        )

    def check_length(self, max_length: int) -> None:
        """Run the model once on rows of `max_length` tokens.

        Raises `ConfigError` naming the longest rows that it accepts, `DataError` if there are none.
        """
        if max_length <= self._largest_accepted:
            return
        if max_length <= (added := self.tokenizer.num_special_tokens_to_add(pair=True)):
            raise ConfigError(
                f"--max_length={max_length} leaves no room for text beside {added} special tokens"
            )
        with torch.random.fork_rng():
            model = Foreign(self._load()).eval()
        short = min(TRIAL_LENGTH, max_length)
        if error := self._trial(model, short):
            raise DataError(
                f"{self.name} ({self._class.__name__}) cannot be fine-tuned: a forward pass "
                f"over two rows of {short} tokens failed ({first_line(error)})"
            )
        if self._trial(model, max_length):
            longer = range(short + 1, max_length)
            longest = short + bisect_left(longer, True, key=lambda n: bool(self._trial(model, n)))
            raise ConfigError(
                f"--max_length={max_length} exceeds the {longest} positions of {self.name}; set "
                f"--max_length={longest}"
            )
        self._largest_accepted = max_length

    @torch.no_grad()
    def _trial(self, model: Foreign, length: int) -> Exception | None:
        text = "the of and to in is that for it was " * (length // 2 + 1)
        try:
            rows = self.tokenizer(
                [text, "the of"], ["the of and", "to in"], truncation=True, max_length=length
            )
            types = rows["token_type_ids"] if self.has_token_types else None
            features = Features(
                rows["input_ids"], types, None, self.tokenizer.pad_token_id,
                self.tokenizer.padding_side == "left", length,
            )  # fmt: skip
            model(features.batch([0, 1]))
        except Exception as error:  # code of the model may raise anything; its message is reported
            return error
        return None

    def _read_weights(self) -> Weights:
        """Read the encoder's weights without wrappers and heads; check that its class expects each.

        A head in the files is dropped if it has a row for each label. ModernBERT's prediction head
        has no such row, so it is loaded as transformers loads it, like BERT's pooler.
        """
        names = _names_of(self.path, self._class, self.config)
        found = read_weights(self.path).unwrapped(names.expected)
        is_for_a_task = any(name in names.outputs for name in found.state)
        left_out = [name for name in found.state if is_for_a_task and name in names.head]
        state = {name: t for name, t in found.state.items() if name not in left_out}
        weights = Weights(state, found.file, found.wrappers)
        with torch.random.fork_rng(), _own_report():
            _, info = self._from_state(weights, self.config)
        self._check(weights, info, names)
        left_out += info["unexpected_keys"]
        if weights.wrappers or left_out:
            print(_loading_report(self.path, weights, left_out), file=sys.stderr, flush=True)
        return weights

    def _check(self, weights: Weights, info: Mapping[str, Any], names: _Names) -> None:
        """Refuse files that do not fill the encoder, or that would fill the new head."""
        place = f"{self.path}/{weights.file}" if Path(self.path).is_dir() else self.path
        if info["mismatched_keys"]:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise DataError(
                f"{place}: {name} has shape {list(found)}, but config.json makes it "
                f"{list(expected)} ({len(info['mismatched_keys'])} weights differ); the two "
                "files belong to different models"
            )
        if info["error_msgs"]:
            raise DataError(f"{place} cannot be loaded: {info['error_msgs'][0]}")
        absent, prefix = sorted(info["missing_keys"]), names.prefix
        has_pooler = any(
            name.removeprefix(prefix).startswith(POOLER) for name in weights.state
        )  # a pooler with only some of its weights is damaged
        missing = [
            name
            for name in absent
            if name.startswith(prefix)
            and (has_pooler or not name.removeprefix(prefix).startswith(POOLER))
        ]
        if missing:
            raise DataError(
                f"{place} lacks {len(missing)} weights of the encoder, which would be "
                "initialized at random: "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''} (the file's first "
                f"name is {next(iter(weights.state), 'none')}); save the whole encoder under "
                f"{self._class.__name__}'s names"
            )
        known = {_pattern(name) for name in names.expected - names.head}
        has_layers = any(".N." in name for name in known)
        more = sorted(
            name
            for name in info["unexpected_keys"]
            if (_pattern(name) in known if has_layers else _pattern(name) != name)
        )
        if more:
            raise DataError(
                f"{place} has {len(more)} weights of layers that config.json does not have, "
                f"such as {more[0]}; the two files belong to different models"
            )
        if kept := sorted(names.outputs - set(absent)):
            raise DataError(f"{place}: {kept[0]} is a weight of the new task head; remove it")
        if twice := [name for name in weights.state if prefix + name in weights.state]:
            raise DataError(
                f"{place} has {twice[0]} also as {prefix}{twice[0]} ({len(twice)} weights twice); "
                "keep the names of one model"
            )
        check_values(place, weights.state, names.numbers)

    def _load(self, labels: tuple[str, ...] = ("0", "1"), problem_type: str | None = None) -> Any:
        """Load transformers' model; the head for its labels is drawn from PyTorch's generator."""
        config = copy.deepcopy(self.config)
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        config.problem_type = problem_type
        if self._weights is None:
            return self._class._from_config(config).float()
        with _own_report():
            return self._from_state(self._weights, config)[0]

    def _from_state(self, weights: Weights, config: Any) -> tuple[Any, Mapping[str, Any]]:
        loaded: tuple[Any, Mapping[str, Any]] = self._class.from_pretrained(
            None,
            config=config,
            # A copy, since transformers uses these tensors as parameters, which training changes.
            state_dict={name: tensor.clone() for name, tensor in weights.state.items()},
            dtype=torch.float32,
            # mismatches are returned in `info` and refused in one sentence
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return loaded


def _load_config(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if find_file(path, "adapter_config.json") and not find_file(path, "config.json"):
        raise DataError(f"{path} is an adapter, not a model; merge it into its base model first")
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise DataError(f"{path} has quantized weights; expected a model in full precision")
    for architecture in config.architectures or ():
        if architecture.endswith("ForSequenceClassification"):
            raise ConfigError(
                f"{path} is already fine-tuned ({architecture}); its head may order labels "
                "differently and its scores would not be comparable; expected the pretrained "
                "encoder itself"
            )
    return config


def _classifier_class(path: str, config: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForSequenceClassification

    name = f"{type(config).__name__} (model_type {config.model_type!r})"
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code
            )
    except (OSError, ImportError):
        raise
    except Exception as error:  # code of the model may raise anything; its message is reported
        if "Unrecognized configuration class" in str(error):
            raise DataError(
                f"{path}: {name} has no class for sequence classification in transformers"
            ) from None
        if "trust_remote_code" in str(error):
            raise
        raise DataError(
            f"{path}: config.json does not describe a valid {name} ({first_line(error)})"
        ) from None
    code = (getattr(config, "auto_map", None) or {}).get("AutoModelForSequenceClassification")
    if code and not trust_remote_code:
        print(
            f"{path} has code of its own ({code}), which is not run; {type(model).__name__} of "
            "transformers is used. If that is another model, set --trust_remote_code",
            file=sys.stderr,
        )
    return type(model)


def _names_of(path: str, model_class: Any, config: Any) -> _Names:
    shapes = []
    for num_labels in (2, 3):
        config = copy.deepcopy(config)
        config.num_labels = num_labels
        with torch.device("meta"):
            model = model_class(config)
        state = model.state_dict()
        shapes.append({name: tensor.shape for name, tensor in state.items()})
    prefix = f"{model.base_model_prefix}."
    if model.base_model is model or not any(name.startswith(prefix) for name in shapes[0]):
        raise DataError(
            f"{path}: {model_class.__name__} does not separate its encoder from its head "
            "(base_model_prefix), so it cannot get a new head"
        )
    head = {name for name in state if not name.startswith(prefix)}
    numbers = {name for name, tensor in state.items() if tensor.is_floating_point()}
    return _Names(
        prefix=prefix,
        head=frozenset(head),
        outputs=frozenset(name for name in head if shapes[0][name] != shapes[1][name]),
        expected=frozenset(state) | {name.removeprefix(prefix) for name in state},
        numbers=frozenset(numbers) | {name.removeprefix(prefix) for name in numbers},
    )


def _num_embeddings(path: str, body: Any) -> int:
    """Return the rows of the token embedding; custom model code may not say which table that is."""
    with suppress(AttributeError, NotImplementedError):
        return int(body.get_input_embeddings().weight.shape[0])
    tables = [m.num_embeddings for m in body.modules() if isinstance(m, torch.nn.Embedding)]
    rows = f"only compared with the largest table ({max(tables):,} rows)" if tables else "unchecked"
    print(
        f"{path}: the model's code does not say which table embeds tokens; token ids are {rows}",
        file=sys.stderr,
    )
    return max(tables, default=sys.maxsize)


def _takes_token_types(model: Any, tokenizer: Any) -> bool:
    known: bool = getattr(model.config, "type_vocab_size", 2) > 1
    named = "token_type_ids" in signature(model.forward).parameters
    return known and named and "token_type_ids" in tokenizer.model_input_names


def _loading_report(path: str, weights: Weights, left_out: Iterable[str]) -> str:
    parts = [f"{path}: {len(weights.state)} weights of {weights.file}"]
    if weights.wrappers:
        parts.append(f"removed {' and '.join(map(repr, weights.wrappers))} around them")
    groups = Counter(".".join(name.split(".")[:2]) for name in sorted(left_out))
    if groups:
        names = ", ".join(f"{group} ({count})" for group, count in groups.most_common(5))
        more = f" and {len(groups) - 5} groups more" if len(groups) > 5 else ""
        parts.append(f"not used, since the encoder has no such weights: {names}{more}")
    return "; ".join(parts)


def display_name(model: str) -> str:
    """Return the name for tables: recipe, run and step for an export, else the given name.

    The name of an export does not change with the directory that it was read from.
    """
    marker = Path(model) / "smallbench.json"
    if not marker.is_file():
        return model
    export = read_json(marker)
    try:
        return f"{export['config']['recipe']} (run {export['run_id']}, step {export['step']:,})"
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{marker} is damaged; export the run again") from None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    path = Path(name)
    check_model_name(name, called=f"model {name!r}", expected="the --out of 'smallbench export'")
    try:
        yield
    except SmallbenchError:
        raise
    except Exception as error:  # damaged files and custom model code may raise anything
        text = str(error).strip()
        if "gated repo" in text or "401" in text:
            raise CredentialsError(
                f"the hub refused model {name!r}; run 'hf auth login' or set HF_TOKEN"
            ) from None
        if "trust_remote_code" in text:
            raise ConfigError(
                f"model {name!r} needs Python code from its own files, which is not run by "
                "default; review the code, then set --trust_remote_code"
            ) from None
        kind = DataError if path.is_dir() else UnavailableError
        raise kind(
            f"model {name!r} cannot be loaded ({first_line(error)}); expected a directory "
            "that 'smallbench export' wrote, or the id of a model on the Hugging Face hub"
        ) from None


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


@contextmanager
def _own_report() -> Iterator[None]:
    """Silence transformers' loading report and progress bar; `PretrainedEncoder` has its own."""
    from transformers.utils import logging as theirs

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    had_bar = theirs.is_progress_bar_enabled()
    logger.addFilter(is_no_report)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)
        if had_bar:
            theirs.enable_progress_bar()
