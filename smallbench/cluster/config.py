"""Flags of a Job on a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from smallbench.config import check, option, require
from smallbench.errors import ConfigError

Stage = Literal["prepare", "pretrain", "sweep", "ablate", "export", "glue", "leaderboard"]
CHAIN: tuple[Stage, ...] = ("prepare", "pretrain", "export", "glue", "leaderboard")
"""The stages of a run in their order."""

STAGES_OF: Mapping[str, tuple[Stage, ...]] = {
    "recipes": ("sweep", "ablate"),
    "learning_rates": ("sweep",),
    "hours": ("pretrain", "sweep"),
    "deadline_hours": ("prepare", "pretrain", "sweep", "ablate", "glue"),
    "corpus_gib": ("prepare", "pretrain", "sweep", "ablate"),
    "pods": ("prepare", "glue"),
    "pods_at_once": ("sweep", "ablate", "glue"),
}
"""Flags that only some stages take, and these stages."""

NAMESPACE = "smallbench"
"""What `k8s/namespace` creates."""
SPOT = ("spot-gke", "spot-aks", "spot-eks", "spot-karpenter")
"""Components that set the grace: what the provider gives a pod whose node it takes away."""
COMPONENTS = ("gpu-v100", *SPOT, "nvidia-runtime", "openshift", "pvc", "offline-wandb")
"""Folders of `k8s/components` that are asked for by name; `cpu` and `kueue` have flags."""

CREDENTIALS = {
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

PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
LABEL = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
    r"=([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?"
)
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
BUCKET = re.compile(r"s3://[^/\s]+(/\S*)?")
MAX_LABEL_CHARACTERS = 63
MAX_RUN_CHARACTERS = 40
"""`leaderboard-RUN-INDEX` must fit into a host's name, 63 characters."""
MAX_SWEEP_CHARACTERS = MAX_RUN_CHARACTERS - len("-999")
"""Each row is a run of that name and its index."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Flags that say which run is meant, and where it is."""

    recipe: str | None = option(None, help="name of a recipe; 'smallbench recipes' lists them")
    run: str | None = option(
        None, help="the run's id; none: the recipe's name and a digest of what was changed in it"
    )
    recipes: tuple[str, ...] = option(
        (), help="recipes of a sweep, or variants of an ablation: the first is the baseline"
    )
    learning_rates: tuple[float, ...] = option((), help="peak learning rates of a sweep")
    flags: str | None = option(
        None, help="further flags of the stage's own command, in quotes", metavar="'--FLAG=VALUE …'"
    )
    namespace: str = option(NAMESPACE, help="namespace of the cluster")

    def __post_init__(self) -> None:
        # First, since other errors repeat the value.
        for field in fields(self):
            value = getattr(self, field.name)
            texts = value if isinstance(value, tuple) else (value,)
            refuse_credentials(text for text in texts if isinstance(text, str))
        check_name("run", self.run, MAX_RUN_CHARACTERS)
        check_name("namespace", self.namespace, MAX_LABEL_CHARACTERS)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(RunConfig):
    """Flags for place and size; what a stage computes is in the flags of its own command."""

    image: str | None = option(
        None, help="container image by digest: REGISTRY/NAME@sha256:…", metavar="IMAGE@DIGEST"
    )
    bucket: str | None = option(
        None, help="s3://BUCKET[/PREFIX] for text, corpus, runs, exports and results"
    )
    gpu: str = option("v100-16gb", help="card to plan for, such as t4-16gb; none: a CPU")
    node_selector: tuple[str, ...] = option(
        (),
        help="only nodes with these labels, such as nvidia.com/gpu.product=Tesla-T4",
        metavar="KEY=VALUE,…",
    )
    cpus: int | None = option(
        None, help="cores of a pod; none: the manifest's, which CPU Adam and tokenizers want"
    )
    memory_gib: int | None = option(None, help="memory of a pod in GiB; none: the plan's")
    hours: float | None = option(
        None, help="pretrain and sweep: hours in steps, over all restarts, after which a run ends"
    )
    deadline_hours: float | None = option(
        None,
        help="hours after which a Job is ended, from its creation on, also while pods wait for "
        "cards; none: more than twice the planned time of all its pods",
    )
    corpus_gib: float = option(
        20.0,
        help="prepare, pretrain, sweep, ablate: size of the prepared corpus; OpenWebText's is 17",
    )
    grace_seconds: int | None = option(
        None,
        help="seconds between SIGTERM and SIGKILL; none: what a save and an upload take, or what "
        "a spot component sets",
    )
    pods: int | None = option(None, help="prepare and glue: number of parts of the work")
    pods_at_once: int | None = option(
        None, help="glue, sweep and ablate: number of pods at a time, such as the number of GPUs"
    )
    components: tuple[str, ...] = option(
        (), help=f"components of the manifests: {', '.join(COMPONENTS)}"
    )
    queue: str | None = option(None, help="LocalQueue of Kueue, which then starts the Job")
    region: str | None = option(None, help="region of the bucket; none: us-east-1")
    endpoint_url: str | None = option(None, help="address of an S3-compatible store; none: AWS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image is not None and not PINNED.fullmatch(self.image):
            raise ConfigError(
                f"image {self.image!r} is not pinned; expected NAME@sha256:DIGEST, which "
                "'docker push' prints: a tag may mean another image when the run continues"
            )
        if self.bucket is not None:
            is_known = BUCKET.fullmatch(self.bucket) is not None
            require(is_known, "bucket", self.bucket, "s3://BUCKET[/PREFIX]")
        check_name("queue", self.queue, MAX_LABEL_CHARACTERS)
        check(self, "", hours="> 0", deadline_hours="> 0", grace_seconds="> 0", corpus_gib=">= 0")
        check(self, "", cpus="> 0", memory_gib="> 0", pods="> 0", pods_at_once="> 0")
        for label in self.node_selector:
            require(LABEL.fullmatch(label) is not None, "node_selector", label, "KEY=VALUE")
        for component in self.components:
            known = component in COMPONENTS
            require(known, "components", component, f"some of {', '.join(COMPONENTS)}")
        if self.gpu == "none" and "gpu-v100" in self.components:
            raise ConfigError(
                "--gpu=none plans for a CPU, but the component gpu-v100 selects nodes with a GPU; "
                "leave one of them out"
            )
        spot = [name for name in self.components if name in SPOT]
        if len(spot) > 1:
            raise ConfigError(
                f"components {' and '.join(spot)} select nodes of different providers; choose one"
            )


def check_name(key: str, value: str | None, longest: int) -> None:
    """Raise `ConfigError` if a value cannot be part of the name of a Kubernetes object."""
    if value is not None:
        fits = DNS_LABEL.fullmatch(value) and len(value) <= longest
        expected = f"lower-case letters, digits and hyphens, at most {longest}"
        require(bool(fits), key, value, expected)


def refuse_credentials(texts: Iterable[str]) -> None:
    """Raise `ConfigError` if a text looks like a credential, without repeating it.

    Everybody who may list pods can read a manifest.
    """
    for text in texts:
        for what, pattern in CREDENTIALS.items():
            if pattern.search(text):
                raise ConfigError(
                    f"a value looks like {what}, and everybody who may list pods would read it; "
                    "put it into the Secret that k8s/examples/secrets.yaml shows"
                )
