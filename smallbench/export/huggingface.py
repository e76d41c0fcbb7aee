"""Export: the newest checkpoint of a run as a Hugging Face directory, checked before it appears.

What is written loads with `AutoTokenizer`, `AutoModelForSequenceClassification` and the class that
its `config.json` names. Code travels with it only if transformers has no class for it
(`export.code`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from smallbench.batch import Batch
from smallbench.checkpoints.record import RECORD_NAME, read_record
from smallbench.checkpoints.store import Checkpoint, CheckpointStore
from smallbench.data.tokenizer import AWKWARD_TEXTS, HELD_OUT_NAME, Tokenizer, different_ids
from smallbench.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    SmallbenchError,
    UnavailableError,
)
from smallbench.export.card import model_card
from smallbench.export.code import CLASSES, config_of, write_code
from smallbench.export.upload import MARKER, fetch_export, refuse_foreign, send_export
from smallbench.files import atomic_directory, read_json, write_json, write_text
from smallbench.models.convert import target_of
from smallbench.objectives.masking import Vocabulary
from smallbench.objectives.replaced_token import DisentangledEmbedding
from smallbench.pretraining.run_record import read_config
from smallbench.storage import open_storage
from smallbench.storage.base import is_remote
from smallbench.storage.config import StorageConfig
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.build import build_objective, vocabulary_of
from smallbench.train.config import PretrainConfig

OUTPUT_TOLERANCE = 1e-4
"""Largest difference of outputs, in float32, that counts as rounding."""


class Exported(NamedTuple):
    """What was exported, and how well it matches."""

    step: int
    difference: float
    """Largest difference of outputs that the check found."""


def load_run(
    run_dir: Path, *, step: int | None = None
) -> tuple[dict[str, Any], PretrainConfig, Checkpoint]:
    """`run.json`, its configuration, and the checkpoint of `step`, or the newest whole one.

    Raises `DataError` if `run_dir` has no run or no checkpoint, `ConfigError` if it has others than
    that of `step`.
    """
    path = run_dir / RECORD_NAME
    if not path.is_file():
        raise DataError(
            f"{run_dir} is not a run (it has no run.json); give the --run_dir of a pretraining"
        )
    run = read_record(path)
    # Read only: the run may be active, and its trainer quarantines damaged checkpoints.
    store = CheckpointStore(run_dir)
    if step is not None:
        store.require(step)
    checkpoint = store.newest(quarantine=False) if step is None else store.load(step)
    if checkpoint is None:
        raise DataError(f"the run in {run_dir} has no checkpoint yet; let it reach its first save")
    return run, read_config(run_dir, run), checkpoint


def export(
    run_dir: Path,
    out: Path | str,
    *,
    step: int | None = None,
    push: str | None = None,
    storage: StorageConfig | None = None,
) -> Exported:
    """Export the run in `run_dir` to `out`; return the step and the largest difference of outputs.

    `out` is a directory or a storage's URL. An earlier export there is replaced; any other content
    is refused. Without `step` the newest checkpoint is taken. `push` is a repository on the Hugging
    Face hub to publish to.
    """
    if push is not None:
        _check_repository(push)
    if not is_remote(str(out)):
        exported = _export_to_directory(run_dir, Path(out), step)
        if push is not None:
            _push(Path(out), push, complete_in=str(out))
        return exported
    place = open_storage(str(out), storage)
    refuse_foreign(place)
    with tempfile.TemporaryDirectory(prefix="smallbench-export-") as folder:
        directory = Path(folder) / "export"
        exported = _export_to_directory(run_dir, directory, step)
        send_export(directory, place)
        if push is not None:
            _push(directory, push, complete_in=place.url)
    return exported


def _export_to_directory(run_dir: Path, out: Path, step: int | None) -> Exported:
    run, config, checkpoint = load_run(run_dir, step=step)
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ConfigError(f"{out} is not empty and is not an earlier export; choose another --out")
    with atomic_directory(out) as temporary:
        tokenizer = Tokenizer.load(run_dir / "tokenizer")
        write_tokenizer(tokenizer, temporary, config)
        difference = write_model(config, checkpoint, temporary, vocabulary_of(tokenizer))
        texts = json.loads((run_dir / "tokenizer" / HELD_OUT_NAME).read_bytes())
        num_texts = check_tokenizer(tokenizer, temporary, held_out=texts)
        write_json(
            temporary / MARKER,
            {
                "schema_version": 1,
                "run_id": run["run_id"],
                "step": checkpoint.step,
                "tokens": checkpoint.manifest["progress"]["num_tokens"],
                "train_seconds": checkpoint.manifest["progress"]["train_seconds"],
                "config": run["config"],
                "config_digest": run["config_digest"],
                "output_difference": difference,
                "tokenizer_texts_compared": num_texts,
            },
        )
        held_out = [
            record
            for record in read_metrics(run_dir / "metrics.jsonl")
            if record["event"] == "eval" and record["step"] <= checkpoint.step
        ]
        card = model_card(run, config, checkpoint.manifest, held_out[-1] if held_out else None)
        write_text(temporary / "README.md", card)
        _refuse_foreign_files(out, temporary)
    return Exported(checkpoint.step, difference)


@contextmanager
def as_export(
    model: str, storage: StorageConfig | None = None, *, step: int | None = None
) -> Iterator[str]:
    """`model` as something that loads while this lasts.

    A run's directory is exported (at `step`, or as it is now), an export in a storage fetched; all
    else stays as it is.
    """
    if not is_remote(model) and not is_run(model):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="smallbench-export-") as directory:
        if is_remote(model):
            fetch_export(open_storage(model, storage), Path(directory))
        else:
            export(Path(model), Path(directory), step=step)
        yield directory


def is_run(model: str) -> bool:
    """Return whether `model` is a run's directory; the code of its export is then the run's own."""
    return (Path(model) / RECORD_NAME).is_file()


def write_tokenizer(tokenizer: Tokenizer, directory: Path, config: PretrainConfig) -> None:
    """Write the tokenizer of a run for a model with its positions and its token types."""
    tokenizer.save(directory, model_max_length=config.model.max_position_embeddings)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if config.model.type_vocab_size < 2:  # the second text of a pair would be outside the table
        inputs.remove("token_type_ids")
    path = directory / "tokenizer_config.json"
    write_json(path, read_json(path) | {"model_input_names": inputs})


def check_tokenizer(tokenizer: Tokenizer, directory: Path, *, held_out: list[str]) -> int:
    """Load the exported tokenizer and compare ids; return the number of texts that were compared.

    Raises `SmallbenchError` if transformers gives other ids than the run's tokenizer.
    """
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(directory)
    texts = [*held_out, *AWKWARD_TEXTS]
    if difference := different_ids(tokenizer, exported, texts):
        raise SmallbenchError(
            f"the export's tokenizer differs from the run's: {difference}; nothing was written"
        )
    return len(texts)


def load_model(
    config: PretrainConfig, checkpoint: Checkpoint, vocabulary: Vocabulary
) -> tuple[Any, str]:
    """Return the trained model in evaluation mode and its head."""
    objective = build_objective(config, vocabulary)
    checkpoint.load_module(objective)
    objective.eval()
    return objective.model, objective.head


def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the model's weights, a token embedding that is a sum of tables (Δ) as their sum."""
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    tokens = getattr(model.embeddings, "tokens", None)
    if isinstance(tokens, DisentangledEmbedding):
        prefix = "embeddings.tokens."
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        state[f"{prefix}weight"] = tokens.weight.detach()
    return state


def write_model(
    config: PretrainConfig, checkpoint: Checkpoint, directory: Path, vocabulary: Vocabulary
) -> float:
    """Write `config.json` and `model.safetensors`; load them back and compare the outputs."""
    import transformers
    from transformers.utils import logging

    model, head = load_model(config, checkpoint, vocabulary)
    target = target_of(config.model, head=head, pad_token_id=vocabulary.pad_id)
    state, format = merged_state(model), {"format": "pt"}
    if target is None:
        write_code(config.model, directory)
        described = config_of(config.model, head=head, pad_token_id=vocabulary.pad_id)
        packed = {f"encoder.{name}": tensor.clone() for name, tensor in state.items()}
        class_name = CLASSES[head][0]
    else:
        described = {
            "architectures": [target.class_name],
            "model_type": target.model_type,
            **target.config,
        }
        packed, class_name = target.pack(state), target.class_name
    save_file(packed, directory / "model.safetensors", metadata=format)
    write_json(directory / "config.json", described)
    logging.disable_progress_bar()
    theirs = getattr(transformers, class_name).from_pretrained(
        directory, dtype=torch.float32, **({"trust_remote_code": True} if target is None else {})
    )
    difference = output_difference(model, theirs, config, vocabulary)
    if not difference <= OUTPUT_TOLERANCE:
        raise SmallbenchError(
            f"the export's outputs differ from the run's by {difference:.2e}, over "
            f"{OUTPUT_TOLERANCE:.0e}; nothing was written"
        )
    return difference


@torch.no_grad()
def output_difference(
    ours: Any, theirs: Any, config: PretrainConfig, vocabulary: Vocabulary
) -> float:
    """Largest absolute difference of the two models' outputs on random rows, padding included.

    Outputs are logits, or hidden states if transformers' class has no head.
    """
    generator = torch.Generator().manual_seed(0)
    length, pad_id = config.sequence_length, vocabulary.pad_id
    ids_BL = torch.randint(0, vocabulary.size - 1, (4, length), generator=generator)
    ids_BL += ids_BL >= pad_id  # any token but padding, from whose ids RoBERTa's positions follow
    mask_BL = torch.ones(4, length, dtype=torch.bool)
    mask_BL[1, length // 2 :] = False
    ids_BL[~mask_BL] = pad_id
    types_BL = None
    if config.model.type_vocab_size > 1:
        types_BL = (torch.arange(length) >= length // 2).long().expand(4, length)
    hidden_BLD = ours.eval()(Batch(ids_BL, mask_BL, types_BL))
    output = theirs.eval()(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=types_BL)
    if "logits" not in output:
        difference = hidden_BLD - output.last_hidden_state
    elif output.logits.ndim == 2:
        difference = ours.predict_replaced(hidden_BLD) - output.logits
    else:
        difference = ours.predict_tokens(hidden_BLD)[..., : vocabulary.size] - output.logits
    return float(difference[mask_BL].abs().max())


def _check_repository(name: str) -> None:
    """Raise if `name` is not a valid repository, before any work."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"Invalid --push={name!r}: expected ORG/NAME ({error})") from None


def _refuse_foreign_files(out: Path, export: Path) -> None:
    """Raise `ConfigError` if `out` has a file that `export`, which replaces it, does not have."""
    foreign = {path.name for path in out.glob("*")} - {path.name for path in export.iterdir()}
    if foreign:
        raise ConfigError(
            f"{out} holds {sorted(foreign)[0]!r}, which no export wrote; move it away, or choose "
            "another --out"
        )


def _push(directory: Path, repository: str, *, complete_in: str) -> None:
    """Publish `directory` to the Hugging Face hub; the export is already in `complete_in`."""
    import httpx  # of the hub's client, which raises its errors if no answer comes
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=repository)
    except LocalTokenNotFoundError:
        raise CredentialsError("no hub token; run 'hf auth login' or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in {401, 403}:
            raise CredentialsError(
                f"the hub refused to publish to {repository!r} ({status}); use a token with write "
                "access to it in HF_TOKEN"
            ) from None
        raise UnavailableError(f"the hub answered {status} to {repository!r}; try again") from None
    except (httpx.HTTPError, OSError) as error:
        raise UnavailableError(
            f"the hub could not be reached ({error}); the export is complete in {complete_in}, "
            "run the same command again to publish it"
        ) from None
