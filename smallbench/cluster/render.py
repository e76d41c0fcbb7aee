"""The manifests of one stage of one run: the committed ones with the values of the run.

Everything lives below one bucket, under names that follow from the run's: `corpus`, `runs/RUN`,
`ablations/RUN`, `exports/RUN`, `glue/RUN`. So a stage finds what the one before it wrote, and a run
that is rendered again with the same configuration continues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import yaml

from smallbench.cluster.config import SPOT, ClusterConfig, refuse_credentials
from smallbench.cluster.manifests import COMPONENT, INSTANCE, Document, built_manifests
from smallbench.cluster.sizes import PodSizes, deadline_seconds, prepare_gib, pull_seconds
from smallbench.cluster.work import StageWork
from smallbench.errors import ConfigError, UsageError
from smallbench.plugins import Plugin

GRACE = "SMALLBENCH_GRACE_SECONDS"
PLUGINS_FOLDER = "/plugins"
"""Where a pod finds the files of a user's own."""


def render_stage(
    work: StageWork,
    config: ClusterConfig,
    sizes: PodSizes | None = None,
    plugins: Sequence[Plugin] = (),
) -> list[Document]:
    """Return the documents of a stage, ready to be applied.

    Without `sizes` a pod has the size of the committed manifest. `plugins` travel in a ConfigMap.
    Raises `UsageError` if a value is missing and `ConfigError` if one looks like a credential.
    """
    if config.image is None or config.bucket is None:
        missing = "image" if config.image is None else "bucket"
        form = "NAME@sha256:DIGEST" if missing == "image" else "s3://BUCKET[/PREFIX]"
        raise UsageError(
            f"--{missing} is missing: set --{missing}={form} or the variable "
            f"SMALLBENCH_{missing.upper()}"
        )
    components = [*(["cpu"] if config.gpu == "none" else []), *config.components]
    documents = built_manifests([*components, *(["kueue"] if config.queue else [])])
    documents = [d for d in documents if d["metadata"]["labels"][COMPONENT] == work.stage]
    for document in documents:
        metadata = document["metadata"]
        metadata |= {"name": f"{work.stage}-{work.run}", "namespace": config.namespace}
        metadata["labels"][INSTANCE] = work.run
    job = JobManifest(documents[-1])
    parts = job.spec.get("completions", 1)
    job.fill(work, config)
    if sizes is not None:
        job.set_scratch(sizes.scratch_gib)
    if work.trains:
        job.wait_for_start(pull_seconds(config.corpus_gib))
    if work.stage == "prepare":
        job.set_scratch(prepare_gib(config.corpus_gib))
    job.set_deadline(work, config, sizes, parts)
    if config.grace_seconds:
        job.set_grace(config.grace_seconds)
    elif sizes is not None and work.trains and not set(config.components) & set(SPOT):
        job.set_grace(sizes.grace_seconds)
    if config.cpus:
        job.set_resource("cpu", str(config.cpus))
    if memory_gib := config.memory_gib or (sizes and sizes.memory_gib):
        job.set_resource("memory", f"{memory_gib}Gi")
    if work.rows:
        texts = [yaml.safe_dump(dict(row), sort_keys=False) for row in work.rows]
        documents[0]["data"] = {f"{index}.yaml": text for index, text in enumerate(texts)}
    if plugins:
        documents.insert(0, job.mount(plugins))
    _refuse_credentials(documents)
    return documents


def warnings(work: StageWork, job: Document, sizes: PodSizes | None) -> Iterator[str]:
    """Yield sentences about what is allowed, but costs a preempted pod its steps."""
    grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    if work.trains and sizes is not None and sizes.save_seconds > grace:
        yield (
            f"{job['metadata']['name']}: a save and an upload take about "
            f"{math.ceil(sizes.save_seconds)} s, but a pod gets {grace} s: a preempted pod loses "
            "the steps since its last checkpoint (--train.save_every_steps)"
        )


class JobManifest:
    """A Job's manifest, and the fields that a run fills."""

    def __init__(self, document: Document) -> None:
        self.document, self.spec = document, document["spec"]
        self.pod: Document = self.spec["template"]["spec"]
        self.container: Document = self.pod["containers"][0]

    def fill(self, work: StageWork, config: ClusterConfig) -> None:
        """Names, places, the command's flags, and how many pods."""
        self.spec["template"]["metadata"]["labels"][INSTANCE] = work.run
        self.container["image"] = config.image
        assert config.bucket is not None
        variables = {
            "BUCKET": config.bucket.rstrip("/"),
            "RUN": work.run,
            "AWS_DEFAULT_REGION": config.region,
            "AWS_ENDPOINT_URL_S3": config.endpoint_url,
        }
        for name, value in variables.items():
            if value:
                self.set_variable(name, value)
        if config.queue:
            self.document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = config.queue
        self.pod["nodeSelector"] |= dict(label.split("=", 1) for label in config.node_selector)
        if work.stage == "pretrain" and work.recipe:
            self.container["args"][1] = work.recipe
        for volume in self.pod["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = self.document["metadata"]["name"]
        self.deal(work.num_runs or config.pods, config.pods_at_once)
        for flag in work.flags:
            self.set_flag(flag)

    def mount(self, plugins: Sequence[Plugin]) -> Document:
        """Mount files at `PLUGINS_FOLDER` and tell the command; return the ConfigMap of them."""
        for plugin in plugins:
            if not re.fullmatch(r"[-.\w]+", plugin.name, re.ASCII):
                raise ConfigError(
                    f"{plugin.name!r} cannot be a key of a ConfigMap; rename the file to letters, "
                    "digits, '-', '_' and '.'"
                )
        metadata = self.document["metadata"]
        name = f"{metadata['name']}-plugins"
        self.pod["volumes"].append({"name": "plugins", "configMap": {"name": name}})
        self.container["volumeMounts"].append(
            {"name": "plugins", "mountPath": PLUGINS_FOLDER, "readOnly": True}
        )
        paths = ",".join(f"{PLUGINS_FOLDER}/{plugin.name}" for plugin in plugins)
        self.set_flag(f"--plugin={paths}")
        own = {"name": name, "namespace": metadata["namespace"]}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**own, "labels": dict(metadata["labels"])},
            "data": {plugin.name: plugin.files[plugin.name] for plugin in plugins},
        }

    def deal(self, pods: int | None, at_once: int | None) -> None:
        """Cut the work into so many parts, if the stage has parts."""
        if "completions" not in self.spec:
            return
        count = pods or self.spec["completions"]
        self.spec["completions"] = count
        self.spec["parallelism"] = min(count, at_once or count)
        if self.spec["maxFailedIndexes"]:  # 0 is a corpus's, which needs each share
            self.spec["maxFailedIndexes"] = count  # however many fail, the others go on
        if any(argument.startswith("--num_shards=") for argument in self.container["args"]):
            self.set_flag(f"--num_shards={count}")

    def set_deadline(
        self, work: StageWork, config: ClusterConfig, sizes: PodSizes | None, parts: int
    ) -> None:
        """Give the Job time for all its pods; the committed manifest's is for `parts` pods at once.

        A Job's clock starts with its creation and also runs while its pods wait for cards, so all
        rows of a sweep are taken to follow each other unless --pods_at_once says what there is.
        """
        if config.deadline_hours is not None:
            self.spec["activeDeadlineSeconds"] = math.ceil(3600 * config.deadline_hours)
        elif work.trains:
            rounds = math.ceil(max(1, work.num_runs) / (config.pods_at_once or 1))
            committed = rounds * self.spec["activeDeadlineSeconds"]
            self.spec["activeDeadlineSeconds"] = committed  # no speed is known, as of CPUs
            if sizes is not None and sizes.hours is not None:
                planned = deadline_seconds(rounds * sizes.hours)
                # Fine-tuning is not planned.
                least = committed if work.stage == "ablate" else 0
                self.spec["activeDeadlineSeconds"] = max(planned, least)
        else:
            rounds = math.ceil(parts / self.spec.get("parallelism", 1))
            if work.stage == "prepare":
                rounds *= max(1, math.ceil(config.corpus_gib / type(config).corpus_gib))
            self.spec["activeDeadlineSeconds"] *= rounds

    def wait_for_start(self, seconds: float) -> None:
        """Let a pod pull its corpus at least so long before its first heartbeat."""
        if (probe := self.container.get("startupProbe")) is not None:
            probe["failureThreshold"] = max(
                probe["failureThreshold"], math.ceil(seconds / probe["periodSeconds"])
            )

    def set_scratch(self, gib: int) -> None:
        """Where a pod may write."""
        self.set_resource("ephemeral-storage", f"{gib}Gi")
        for volume in self.pod["volumes"]:
            if volume["name"] == "scratch":
                volume["emptyDir"]["sizeLimit"] = f"{gib}Gi"

    def set_grace(self, seconds: int) -> None:
        """From SIGTERM to SIGKILL, and as the trainer is told."""
        self.pod["terminationGracePeriodSeconds"] = seconds
        if any(variable["name"] == GRACE for variable in self.container["env"]):
            self.set_variable(GRACE, str(seconds))

    def set_resource(self, name: str, amount: str) -> None:
        """Request and limit."""
        for amounts in self.container["resources"].values():
            amounts[name] = amount

    def set_variable(self, name: str, value: str) -> None:
        """Set a variable of the container."""
        known = {variable["name"]: variable for variable in self.container["env"]}
        if name in known:
            known[name]["value"] = value
        else:
            self.container["env"].append({"name": name, "value": value})

    def set_flag(self, flag: str) -> None:
        """Replace the flag of that name, or append it."""
        arguments = self.container["args"]
        names = [argument.partition("=")[0] for argument in arguments]
        name = flag.partition("=")[0]
        at = names.index(name) if name in names else len(names)
        arguments[at : at + 1] = [flag]


def _refuse_credentials(documents: Sequence[Document]) -> None:
    """Check every field that a user's value can reach."""
    for document in documents:
        texts = list(document.get("data", {}).values())
        if document["kind"] == "Job":
            container = document["spec"]["template"]["spec"]["containers"][0]
            variables = [v for v in container["env"] if "value" in v]
            texts += [*container["args"], *(f"{v['name']}={v['value']}" for v in variables)]
        refuse_credentials(texts)
