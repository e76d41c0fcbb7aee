"""A Hugging Face model as a user names it: a directory, or an id on the hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from smallbench.errors import DataError


def check_model_name(name: str, *, called: str, expected: str) -> None:
    """Raise `DataError` unless `name` is a model's directory or an id; say if the hub is asked.

    `called` and `expected` are the words of the error for a name that cannot be an id.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise DataError(
                f"{name} is neither a Hugging Face model (config.json is missing) nor a run "
                "(run.json is missing); expected the --out of 'smallbench export', or the "
                "--run_dir of a pretraining"
            )
    # The hub's ids are NAME or ORG/NAME; anything else can only be a directory.
    elif path.is_file() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise DataError(f"{called} is not a directory; expected {expected}")
    else:
        print(
            f"{name} is not a local directory; asking the Hugging Face hub",
            file=sys.stderr,
            flush=True,
        )
