"""Configuration of a training run. No torch here: recipes and `--help` read this file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from smallbench.config import check, option, require, section, set_section_names
from smallbench.errors import ConfigError
from smallbench.models import ARCHITECTURES
from smallbench.models.config import BertConfig, EncoderConfig
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.config import MaskedLMConfig, ObjectiveConfig, ReplacedTokenConfig
from smallbench.plugins import Plugin, is_reference, plugin_of
from smallbench.storage.config import StorageConfig
from smallbench.train import OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has. Norms and biases do not decay."""

    optimizer: str = option("", help="adamw, muon, adafactor, or FILE.py:NAME")
    learning_rate: float = option(5e-4, help="peak learning rate")
    weight_decay: float = option(0.01, help="weight decay; not applied to norms and biases")
    clip_norm: float = option(1.0, help="gradient clipping norm (Hugging Face: max_grad_norm)")

    def __post_init__(self) -> None:
        check(self, "optim.", learning_rate=">= 0", clip_norm="> 0", weight_decay=">= 0")


@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with bias correction."""

    optimizer: str = "adamw"
    beta1: float = option(0.9, help="decay of the mean of the gradients")
    beta2: float = option(0.999, help="decay of the mean of their squares")
    epsilon: float = option(1e-6, help="AdamW's epsilon")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "optim.", beta1="[0, 1)", beta2="[0, 1)", epsilon="> 0")


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all else."""

    optimizer: str = "muon"
    momentum: float = option(
        0.95,  # Jordan et al. 2024
        help="Muon's momentum",
    )
    matrix_scale: float = option(
        10.0, help="learning rate of hidden matrices divided by that of all other parameters"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "optim.", momentum="[0, 1)", matrix_scale="> 0")


@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235): a state of almost no memory."""

    optimizer: str = "adafactor"
    learning_rate: float = option(1e-2, help="peak learning rate, relative to each parameter")
    beta2_decay: float = option(-0.8, help="exponent of the step in the second moment's decay")
    clip_threshold: float = option(1.0, help="largest root mean square of a parameter's update")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "optim.", beta2_decay="<= 0", clip_threshold=">= 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """What every schedule has: a linear warm-up, its unit, and the growth of the batch."""

    schedule: str = option("", help="linear, cosine, constant, or FILE.py:NAME")
    along: Literal["steps", "hours", "flops"] = option(
        "steps",
        help="unit of the schedule: steps (up to max_steps), hours (up to max_hours) or flops "
        "(up to max_flops)",
    )
    warmup_fraction: float = option(
        0.01, help="warm-up fraction of the run (Hugging Face: warmup_ratio)"
    )
    initial_batch_size: int | None = option(
        None, help="sequences per step at the start, up to train.global_batch_size; none: no ramp"
    )
    # Geiping & Goldstein 2022, "Cramming", §4.3: over 60 % of the budget.
    batch_ramp_fraction: float = option(
        0.6, help="fraction of the run during which the batch grows"
    )

    def __post_init__(self) -> None:
        if type(self) is ScheduleConfig:
            raise ConfigError(
                "ScheduleConfig is the base of all schedules; use LinearSchedule, CosineSchedule, "
                "ConstantSchedule or a class of your own"
            )
        ranges = {"warmup_fraction": "[0, 1)", "batch_ramp_fraction": "(0, 1]"}
        check(self, "schedule.", initial_batch_size=">= 1", **ranges)


@dataclass(frozen=True)
class LinearSchedule(ScheduleConfig):
    """Linear warm-up, then linear decay to zero at the end of the run."""

    schedule: str = "linear"


@dataclass(frozen=True)
class CosineSchedule(ScheduleConfig):
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

    schedule: str = "cosine"
    final_rate: float = option(0.0, help="learning rate at the end, as a part of the peak")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "schedule.", final_rate="[0, 1]")


@dataclass(frozen=True)
class ConstantSchedule(ScheduleConfig):
    """Linear warm-up, then the peak, then a decay at the end (Hägele et al. 2024, WSD)."""

    schedule: str = "constant"
    decay_fraction: float = option(0.2, help="part of the run after the warm-up that decays")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "schedule.", decay_fraction="(0, 1]")


@dataclass(frozen=True)
class PhaseConfig:
    """A second phase with longer rows, at the end of the run (BERT: 512 tokens, the last 10 %)."""

    sequence_length: int | None = option(
        None, help="tokens of a row of the second phase; none: there is no second phase"
    )
    begin_fraction: float = option(0.9, help="part of the run after which it begins")
    corpus: str | None = option(None, help="hash of its corpus; filled in from --then_data")

    def __post_init__(self) -> None:
        check(self, "then.", sequence_length="[8, 131072]", begin_fraction="(0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, in which numbers, and how often to look and to save."""

    max_steps: int = option(1_000_000, help="optimizer steps; the schedule ends there")
    max_hours: float | None = option(
        None,
        help="training hours over all restarts after which the run ends; the schedule's length "
        "with schedule.along=hours",
    )
    max_flops: float | None = option(
        None,
        help="floating-point operations of the model over all restarts after which the run ends; "
        "the schedule's length with schedule.along=flops",
    )
    init_from: str | None = option(
        None,
        help="initial weights: directory of a run or an export, or id of a model on the Hugging "
        "Face hub; none: random weights",
    )
    global_batch_size: int = option(128, help="sequences per optimizer step")
    micro_batch_size: int | None = option(
        None, help="sequences per forward pass; none: the whole global batch"
    )
    seed: int = option(1, help="initial weights, data order, masks and dropout")
    device: str = option("auto", help="auto, cpu or cuda")
    precision: str = option("auto", help="auto, bf16, fp16 (with loss scaling) or fp32")
    half_residual: bool = option(
        False,
        help="residual stream in bf16 or fp16 instead of fp32, norms' statistics in fp32: fewer "
        "bytes on a GPU, slightly other losses",
    )
    compile: bool = option(
        # Slower on CPUs (docs/results.md); on GPUs not measured yet, see docs/one_gpu.md.
        False,
        help="torch.compile the objective; needs a C++ compiler or Triton",
    )
    deterministic: bool = option(
        False,
        help="only kernels that add in the same order each time: exact resume on GPUs also for "
        "rows longer than 128 tokens, slower",
    )
    engine: Literal["auto", "torch", "deepspeed"] = option(
        "auto", help="backend of the steps; auto: torch unless something must be offloaded"
    )
    offload: Literal["auto", "none", "optimizer", "parameters"] = option(
        "auto", help="what is kept in host memory (ZeRO-Offload); auto: only what does not fit"
    )
    zero_stage: int | None = option(
        None,
        help="DeepSpeed's ZeRO stage 0 to 3; none: 3 if parameters are offloaded, 2 if the "
        "optimizer is or there are several GPUs, else 0",
    )
    checkpoint_activations: bool = option(
        False, help="recompute each layer in the backward pass: less memory, slower"
    )
    log_every_steps: int = option(50, help="steps between two records; at least one a minute")
    eval_every_steps: int = option(5_000, help="held-out loss at this interval and at the end")
    num_eval_rows: int = option(2_048, help="number of held-out sequences to evaluate")
    save_every_steps: int = option(5_000, help="checkpoint at this interval and at the end")
    save_every_minutes: float = option(
        30.0, help="checkpoint also after this many minutes of training without one"
    )
    keep_last: int = option(2, help="number of newest checkpoints to keep")
    keep_every_steps: int | None = option(
        None, help="interval in steps of checkpoints that are kept permanently"
    )
    milestones: tuple[int, ...] = option((), help="steps that are saved and kept permanently")
    max_nonfinite_steps: int = option(
        20, help="steps in a row with a non-finite gradient before the run ends with exit code 70"
    )

    def __post_init__(self) -> None:
        counts = (
            "num_eval_rows", "max_nonfinite_steps", "log_every_steps", "eval_every_steps",
            "save_every_steps", "keep_last", "keep_every_steps",
        )  # fmt: skip
        check(self, "train.", **dict.fromkeys(counts, ">= 1"), seed=">= 0")
        # Batches of 65,536 rows are the largest published (LAMB, arXiv 1904.00962).
        batches = dict.fromkeys(("global_batch_size", "micro_batch_size"), "[1, 1048576]")
        check(self, "train.", **batches, max_steps="[0, 1000000000]")
        check(self, "train.", max_hours="> 0", max_flops="> 0", save_every_minutes="> 0")
        require(min(self.milestones, default=1) >= 1, "train.milestones", self.milestones, "> 0")
        self._check_engine()
        if self.global_batch_size % self.rows_per_forward:
            raise ConfigError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {self.micro_batch_size}"
            )

    def _check_engine(self) -> None:
        stage = self.zero_stage
        check(self, "train.", zero_stage="[0, 3]")
        if self.engine == "torch" and self.offload in {"optimizer", "parameters"}:
            raise ConfigError(
                f"train.offload {self.offload!r} needs train.engine deepspeed, not 'torch'"
            )
        needed = {"optimizer": {1, 2, 3}, "parameters": {3}}.get(self.offload)
        if stage is not None and needed and stage not in needed:
            stages = " or ".join(map(str, sorted(needed)))
            raise ConfigError(
                f"train.offload {self.offload!r} needs train.zero_stage {stages}, not {stage}"
            )
        if self.compile and self.needs_deepspeed:
            raise ConfigError("train.compile works with train.engine torch only; leave one out")

    @property
    def needs_deepspeed(self) -> bool:
        """Whether one of the options is DeepSpeed's."""
        is_offloaded = self.offload in {"optimizer", "parameters"}
        return self.engine == "deepspeed" or is_offloaded or self.zero_stage is not None

    @property
    def rows_per_forward(self) -> int:
        """`micro_batch_size`, or the whole global batch."""
        return self.global_batch_size if self.micro_batch_size is None else self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class DurabilityConfig(StorageConfig):
    """Remote storage of a run, and its timeouts."""

    storage: str | None = option(
        None,
        help="s3://BUCKET/PREFIX or directory that also keeps the run, under --run_dir's name",
        metavar="URL",
    )
    lease_seconds: float = option(
        60.0, help="time without a renewal after which another process may take over the run"
    )
    max_unsynced_minutes: float = option(
        24 * 60.0, help="time without a successful upload after which the run exits with code 69"
    )
    allow_changed_code: bool = option(
        False, help="continue a run although the code of its plug-ins has changed"
    )
    final_sync_minutes: float = option(
        30.0, help="how long to retry the upload after the last step before exit code 69"
    )

    def __post_init__(self) -> None:
        check(self, "", lease_seconds="(0, 86400]")
        check(self, "", max_unsynced_minutes=">= 0", final_sync_minutes=">= 0")


@dataclass(frozen=True, kw_only=True)
class AccountingConfig:
    """How energy and cost are counted."""

    energy: Literal["auto", "nvml", "codecarbon", "tdp", "none"] = option(
        "auto", help="meter of energy; auto: the GPU's counter, or an estimate from its TDP"
    )
    price_per_hour: float | None = option(
        None, help="price of the machine per hour, in any currency; the run's cost is recorded"
    )

    def __post_init__(self) -> None:
        check(self, "", price_per_hour=">= 0")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a pretraining run computes; a recipe is one of these."""

    recipe: str = ""
    sequence_length: int = option(128, help="tokens in a row, which the corpus was prepared with")
    model: EncoderConfig = section(ARCHITECTURES, BertConfig)
    objective: ObjectiveConfig = section(OBJECTIVES, MaskedLMConfig)
    optim: OptimizerConfig = section(OPTIMIZERS, AdamWConfig)
    schedule: ScheduleConfig = section(SCHEDULES, LinearSchedule)
    train: TrainConfig = field(default_factory=TrainConfig)
    then: PhaseConfig = field(default_factory=PhaseConfig)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch of full rows."""
        return self.train.global_batch_size * self.sequence_length

    def __post_init__(self) -> None:
        set_section_names(self)
        check(self, "", sequence_length="[8, 131072]")
        positions = self.model.max_position_embeddings
        for phase, length in (("", self.sequence_length), ("then.", self.then.sequence_length)):
            if length and length > positions:
                raise ConfigError(
                    f"{phase}sequence_length {length} is over model.max_position_embeddings "
                    f"{positions}"
                )
        for name in ("two_segment_fraction", "related_fraction"):
            fraction = getattr(self.objective, name)
            if self.model.type_vocab_size < 2 and fraction > 0:
                raise ConfigError(
                    f"objective.{name} {fraction} requires segment embeddings, which "
                    f"model.architecture {self.model.architecture!r} does not have; set it to 0"
                )
        train, along = self.train, self.schedule.along
        if along != "steps" and getattr(train, f"max_{along}") is None:
            raise ConfigError(
                f"schedule.along {along!r} needs train.max_{along}; set it, or leave "
                "schedule.along out"
            )
        if self.optim.optimizer != "adamw" and train.needs_deepspeed:
            raise ConfigError(
                f"the DeepSpeed engine supports optim.optimizer 'adamw' only, not "
                f"{self.optim.optimizer!r}; use --train.engine=torch --train.offload=none"
            )
        first, size = self.schedule.initial_batch_size, train.rows_per_forward
        if first is not None and (first % size or first > train.global_batch_size):
            raise ConfigError(
                f"schedule.initial_batch_size {first} must be a multiple of train.micro_batch_size "
                f"{size} (set that too) and at most train.global_batch_size "
                f"{train.global_batch_size}"
            )
        if isinstance(self.objective, ReplacedTokenConfig):
            self.model.narrowed(self.objective.generator_width)  # raises if that is not possible


def plugins_of(config: PretrainConfig) -> list[Plugin]:
    """Return the plug-ins that `config` names, each file and package once."""
    names = [config.recipe]
    for f in fields(config):
        if table := f.metadata.get("table"):
            names.append(getattr(getattr(config, f.name), table.kind))
    found = [plugin_of(name) for name in names if is_reference(name)]
    return list({plugin.name: plugin for plugin in found}.values())


RESUMABLE_KEYS = frozenset(
    f"train.{name}"
    for name in (
        "device", "keep_last", "keep_every_steps", "milestones", "log_every_steps",
        "eval_every_steps", "num_eval_rows", "save_every_steps", "save_every_minutes",
        "micro_batch_size", "engine", "offload", "zero_stage", "checkpoint_activations",
        "deterministic",
        "max_nonfinite_steps",
    )
)  # fmt: skip
"""Keys that may change when a run continues: they decide what is observed, kept and tolerated, not
what is learned. (Another micro-batch sums in another order and draws other dropout masks.)"""


def resumable_keys(config: PretrainConfig) -> frozenset[str]:
    """Return the keys that may change when a run of `config` continues.

    Hours and FLOPs may, if they only end the run.
    """
    limits = {"hours": "train.max_hours", "flops": "train.max_flops"}
    limits.pop(config.schedule.along, None)
    return RESUMABLE_KEYS | set(limits.values())
