"""Initial weights from another run, from an export, or from a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallbench.checkpoints.state import distinct_state
from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import DataError, UnavailableError, reason_of
from smallbench.models.convert import body_of, target_of
from smallbench.models.named import check_model_name
from smallbench.objectives.base import PretrainObjective

EXPECTED = "the directory of a run or an export, or the id of a model on the Hugging Face hub"


def load_initial_weights(objective: PretrainObjective, source: str, tokenizer: Path) -> str:
    """Load the weights of `source` into `objective`; return a report of what was loaded.

    `tokenizer` is the folder of the run's tokenizer. Raises `DataError` if a weight has another
    shape, if no weight fits, or if the token ids differ, `UnavailableError` if the hub does not
    have `source` or does not answer.
    """
    path = Path(source)
    is_run = (path / "run.json").is_file()
    if not is_run:
        check_model_name(source, called=f"--init_from={source}", expected=EXPECTED)
    _check_tokenizer(str(path / "tokenizer") if is_run else source, tokenizer, source)
    found = _of_run(path) if is_run else _of_export(source, objective)
    own = distinct_state(objective)
    for name in found.keys() & own.keys():
        if found[name].shape != own[name].shape:
            raise DataError(
                f"--init_from={source}: {name} has the shape {list(found[name].shape)}, but "
                f"{list(own[name].shape)} in this run; set the same --model values"
            )
    loaded = {name: tensor for name, tensor in found.items() if name in own}
    if not loaded:
        raise DataError(f"--init_from={source} does not have any of this run's weights")
    objective.load_state_dict(loaded, strict=False)
    lines = [f"loaded {len(loaded)} of {len(own)} weights from {source}"]
    for names, what in (
        (own.keys() - loaded.keys(), "missing there, initialized randomly"),
        (found.keys() - own.keys(), "not part of this run, ignored"),
    ):
        if names:
            lines.append(f"{what}: {', '.join(sorted(names))}")
    return "\n".join(lines)


def _of_run(run_dir: Path) -> dict[str, Tensor]:
    checkpoint = CheckpointStore(run_dir).newest()
    if checkpoint is None:
        raise DataError(
            f"--init_from={run_dir} has no checkpoint yet; continue that run until it saves one"
        )
    return checkpoint.module_state()


def _of_export(source: str, objective: PretrainObjective) -> dict[str, Tensor]:
    """Return the weights of a Hugging Face model by the names that they have in `objective`."""
    import transformers

    try:
        # Else transformers asks a question on standard input.
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        theirs = config.to_dict()
        name = (theirs.get("architectures") or [""])[0]
        auto = getattr(transformers, name, transformers.AutoModel)
        model, loading = auto.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        kind = DataError if Path(source).is_dir() else UnavailableError
        raise kind(
            f"--init_from={source} cannot be loaded ({reason_of(error)}); expected {EXPECTED}"
        ) from None
    if body_of(theirs) is None:
        raise DataError(
            f"--init_from={source}: unsupported architecture {theirs.get('model_type')!r}, or "
            "unsupported options of it"
        )
    pad_token_id = theirs.get("pad_token_id") or 0
    target = target_of(objective.model.config, head=objective.head, pad_token_id=pad_token_id)
    if target is None:
        raise DataError(
            f"--init_from={source}: transformers does not support the architecture "
            f"{objective.model.config.architecture!r}; expected a run directory"
        )
    # ELECTRA's and BERT's encoders are one network here, and names of a bare model have no prefix.
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    known = {
        name: t for name, t in model.state_dict().items() if name not in loading["missing_keys"]
    }
    state = {
        f"{target.model_type}.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: t
        for name, t in known.items()
    }
    return {f"model.{ours}": tensor for ours, tensor in target.unpack(state).items()}


def _check_tokenizer(theirs: str, ours: Path, source: str) -> None:
    import transformers

    def vocabulary(place: str) -> dict[str, Any]:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            kind = DataError if Path(source).is_dir() else UnavailableError
            raise kind(
                f"the tokenizer of --init_from={source} cannot be loaded "
                f"({reason_of(error)}); expected {EXPECTED}"
            ) from None
        return dict(tokenizer.get_vocab())

    here, there = vocabulary(str(ours)), vocabulary(theirs)
    if here != there:
        differing = sum(here.get(token) != there.get(token) for token in here.keys() | there.keys())
        raise DataError(
            f"--init_from={source} has another tokenizer than the corpus ({differing:,} tokens "
            "differ); prepare the corpus with --tokenizer set to that one"
        )
