"""Refuse credentials in manifests, which everybody can read who may list pods."""

from __future__ import annotations

import re
from collections.abc import Iterable

from smallbench.errors import ConfigError

PATTERNS = {
    "an access key's id": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a key of Weights & Biases": re.compile(r"\b([0-9a-f]{40}|wandb_v1_\w{20,})\b"),
    "a token of the Hugging Face hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
    # Also without a scheme, as an image's; a tag before a digest is not a password.
    "an address with a password": re.compile(r":\S*@(?!sha256:)"),
    "a secret by its name": re.compile(
        # Not --tokenizer=, nor a number of tokens.
        r"((secret|passw(or)?d|api[-_]?key|access[-_]?key|credential)\w*|(^|[-_])token)=",
        re.I,
    ),
}
"""By the name that a user knows."""


def refuse_credentials(texts: Iterable[str]) -> None:
    """Raise `ConfigError` if a text looks like a credential, without repeating it."""
    for text in texts:
        for what, pattern in PATTERNS.items():
            if pattern.search(text):
                raise ConfigError(
                    f"a value looks like {what}, and everybody who may list pods would read it; "
                    "put it into the Secret that k8s/examples/secrets.yaml shows"
                )
