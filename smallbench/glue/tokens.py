"""The tokenizer of a foreign encoder: complete, and consistent with the model's configuration."""

from __future__ import annotations

from typing import Any

from smallbench.data.backends import read_vocabulary
from smallbench.errors import DataError
from smallbench.glue.weights import find_file

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a directory or hub model.

    Raises `DataError` if its files are missing: transformers would build one of special tokens.
    """
    from transformers import AutoTokenizer

    find_file(model, TOKENIZER_FILE)  # raises for a git-lfs pointer
    if vocabulary := find_file(model, "vocab.txt"):
        try:
            read_vocabulary(vocabulary)
        except DataError as error:
            raise DataError(f"{vocabulary}: {error}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ImportError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        # For unknown content tokenizers raises Exception itself, transformers KeyError.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(
            f"the tokenizer of {model} cannot be read ({reason}); it is missing, damaged, or "
            "written by a newer release: copy the tokenizer's files again, or update 'tokenizers'"
        ) from None
    names = {key: name for key, name in type(tokenizer).vocab_files_names.items() if name}
    fast = names.pop("tokenizer_file", TOKENIZER_FILE)
    # A class without files of its own (ByT5, CANINE) reads bytes or characters.
    missing = [name for name in names.values() if find_file(model, name) is None]
    if missing and find_file(model, fast) is None:
        raise DataError(
            f"{model} has no tokenizer: it lacks {' and '.join(missing)}, and {fast}; copy the "
            "files of the tokenizer that the model was trained with into it"
        )
    special = set(tokenizer.all_special_tokens)
    if not any(token not in special for token in tokenizer.get_vocab()):
        raise DataError(f"the tokenizer of {model} knows only special tokens; copy it again")
    return tokenizer


def settle_padding(model: str, config: Any, tokenizer: Any) -> None:
    """Give `config` and `tokenizer` the padding token that only one of them knows.

    Raises `DataError` if neither has one, or if they disagree.
    """
    ours: int | None = tokenizer.pad_token_id
    theirs: int | None = getattr(config, "pad_token_id", None)
    if theirs is not None and theirs < 0:  # -1 means None in some decoders
        theirs = None
    if ours is None and theirs is None:
        raise DataError(
            f"{model} has no padding token; set pad_token in tokenizer_config.json and "
            "pad_token_id in config.json"
        )
    if ours is None:
        assert theirs is not None
        token = tokenizer.convert_ids_to_tokens(theirs) if theirs < len(tokenizer) else None
        if token is None:
            raise DataError(
                f"{model}: config.json's pad_token_id {theirs} is not a token of its tokenizer, "
                f"which has {len(tokenizer)} tokens and no pad_token; set it in "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = token
    elif theirs is None:
        config.pad_token_id = ours
    elif ours != theirs:
        raise DataError(
            f"{model}: its tokenizer pads with {tokenizer.pad_token!r} ({ours}), but config.json "
            f"says pad_token_id {theirs}; set both to what the model was trained with"
        )


def check_token_ids(model: str, tokenizer: Any, num_embeddings: int) -> None:
    """Raise `DataError` if the tokenizer has ids beyond the rows of the token embedding."""
    beyond = sorted(
        (index, token) for token, index in tokenizer.get_vocab().items() if index >= num_embeddings
    )
    if beyond:
        names = ", ".join(f"{token!r} ({index})" for index, token in beyond[:3])
        raise DataError(
            f"{model}: {len(beyond)} tokens of its tokenizer have ids beyond the {num_embeddings} "
            f"rows of the token embedding: {names}; resize the embedding and train the new rows, "
            "or remove the tokens from the tokenizer"
        )
