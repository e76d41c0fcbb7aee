"""The tokenizer of a foreign encoder: complete, and consistent with the model's configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from smallbench.data.backends import read_vocabulary
from smallbench.data.tokenizer import AWKWARD_TEXTS
from smallbench.errors import DataError
from smallbench.files import read_json
from smallbench.glue.weights import find_file, first_line

TOKENIZER_FILE = "tokenizer.json"
MOST_UNUSED = 1000  # mDeBERTa has 899 unused rows, more than others known


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a directory or hub model.

    Raises `DataError` if its files are missing: transformers would build one of special tokens.
    """
    from transformers import AutoTokenizer

    own, vocabulary, tokens = find_file(model, TOKENIZER_FILE), find_file(model, "vocab.txt"), []
    if vocabulary:
        try:
            tokens = read_vocabulary(vocabulary)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{vocabulary}: {error}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        if backend := getattr(tokenizer, "backend_tokenizer", None):
            _check_files(model, tokenizer, backend, own, tokens)
    except (OSError, ImportError, DataError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        # For unknown content tokenizers raises Exception itself, transformers KeyError.
        raise DataError(
            f"the tokenizer of {model} cannot be read ({first_line(error)}); it is missing, "
            "damaged, or written by a newer release: copy the tokenizer's files again, or update "
            "'tokenizers'"
        ) from None
    names = {key: name for key, name in type(tokenizer).vocab_files_names.items() if name}
    fast = names.pop("tokenizer_file", TOKENIZER_FILE)
    # A class without files of its own (ByT5, CANINE) reads bytes or characters.
    missing = [name for name in names.values() if find_file(model, name) is None]
    if missing and (own if fast == TOKENIZER_FILE else find_file(model, fast)) is None:
        raise DataError(
            f"{model} has no tokenizer: it lacks {' and '.join(missing)}, and {fast}; copy the "
            "files of the tokenizer that the model was trained with into it"
        )
    special = set(tokenizer.all_special_tokens)
    if not any(token not in special for token in tokenizer.get_vocab()):
        raise DataError(f"the tokenizer of {model} knows only special tokens; copy it again")
    return tokenizer


def _check_files(
    model: str, tokenizer: Any, backend: Any, own: Path | None, tokens: list[str]
) -> None:
    """Compare a fast tokenizer with its files: what transformers adds or changes is said."""
    from tokenizers import Tokenizer, models

    known = tokenizer.get_vocab()
    if isinstance(backend.model, models.WordPiece):
        moved = [(i, t) for i, t in enumerate(tokens) if known.get(t, i) != i]
        if moved:
            line, token = moved[0]
            raise DataError(
                f"{model}: {token!r} is {known[token]} in the tokenizer, {line} in vocab.txt "
                f"({len(moved)} tokens differ); keep the file that the model was trained with"
            )
    given = {*backend.get_vocab(with_added_tokens=False)}
    if own:
        given |= {token["content"] for token in read_json(own).get("added_tokens", [])}
    if added := find_file(model, "added_tokens.json"):
        given |= read_json(added).keys()
    given |= {str(t) for t in tokenizer.init_kwargs.get("added_tokens_decoder", {}).values()}
    for role in ("unk", "cls", "sep"):
        token = getattr(tokenizer, f"{role}_token")
        if token is not None and token not in given:
            raise DataError(
                f"{model}: its {role} token {token!r} is in none of the tokenizer's files; copy "
                "the files that the model was trained with"
            )
    inside = tokenizer("a", "a")["input_ids"]
    if tokenizer.cls_token_id is not None and tokenizer.cls_token_id not in inside:
        print(f"{model}: its tokenizer adds no {tokenizer.cls_token} to a text", file=sys.stderr)
    if own is None:
        return
    written = Tokenizer.from_file(str(own))
    written.no_truncation()
    written.no_padding()
    for text in AWKWARD_TEXTS:
        if written.encode(text).ids != tokenizer(text, verbose=False)["input_ids"]:
            print(
                f"{model}: {type(tokenizer).__name__} of transformers gives other ids than "
                f"{TOKENIZER_FILE}, such as for {text[:20]!r}, and is used; if the model was "
                "trained with the file, set tokenizer_class to PreTrainedTokenizerFast in "
                "tokenizer_config.json",
                file=sys.stderr,
            )
            return


def unknown_id(tokenizer: Any) -> int | None:
    """Return the id of an unknown token, also if only the tokenizer's file names it."""
    backend, known = getattr(tokenizer, "backend_tokenizer", None), tokenizer.unk_token_id
    if known is None and backend is not None:
        model = json.loads(backend.to_str())["model"]
        known = model.get("unk_id") or backend.token_to_id(model.get("unk_token") or "")
    return None if known is None else int(known)


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
    unused = num_embeddings - len(tokenizer)
    if MOST_UNUSED < unused < sys.maxsize // 2:
        print(
            f"{model}: its tokenizer has {len(tokenizer):,} tokens, its embedding "
            f"{num_embeddings:,} rows; is it the tokenizer that the model was trained with?",
            file=sys.stderr,
        )
