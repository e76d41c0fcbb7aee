"""DeepSpeed behind the engine's protocol: ZeRO and ZeRO-Offload.

DeepSpeed's own checkpoints are not used: weights and moments leave it by name, in float32, so that
checkpoints do not depend on the engine and need no pickle.

With stage 0 the weights stay in float32 and steps are autocast, as in `TorchEngine`. From stage 1
on the model has bf16 or fp16 weights and float32 masters (Rajbhandari et al. 2020, "ZeRO"; Ren et
al. 2021, "ZeRO-Offload").
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.checkpoints.state import distinct_state
from smallbench.errors import DivergedError, UnavailableError
from smallbench.objectives.base import Objective, Sums
from smallbench.train.compiled_ops import compiled_ops, op_errors_explained
from smallbench.train.config import AdamWConfig
from smallbench.train.engine import Update, load_loss_scale, shapes_of
from smallbench.train.memory import keep_freed_memory
from smallbench.train.optim import MOMENTS, build_adamw, check_states
from smallbench.train.precision import DTYPES
from smallbench.train.processes import Processes

Offload = Literal["none", "optimizer", "parameters"]

BUCKET_ELEMENTS = int(5e7)
"""Size of a gradient bucket: DeepSpeed's default of 5e8 takes a gigabyte, too much for 16 GB."""

OLDEST = (0, 19, 5)
"""Before 0.19.0 offloading with gradient accumulation silently loses gradients (DeepSpeed #7967,
#7981: a norm of 0.350 instead of 0.531)."""


def require_deepspeed() -> Any:
    """Return the module; raise `UnavailableError` if it is missing or too old."""
    try:
        import deepspeed
    except ImportError:
        raise UnavailableError(
            "train.engine deepspeed requires the package deepspeed; "
            "pip install 'smallbench[deepspeed]'"
        ) from None
    version = tuple(int(part) for part in deepspeed.__version__.split("+")[0].split(".")[:3])
    if version < OLDEST:
        raise UnavailableError(
            f"deepspeed {deepspeed.__version__} loses gradients when it offloads; "
            f"pip install 'deepspeed>={'.'.join(map(str, OLDEST))}'"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs a line for every action
    warnings.filterwarnings(  # from within its communication, at every call
        "ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning
    )
    return deepspeed


class DeepSpeedEngine:
    """One module, trained by DeepSpeed. `micro_batch_size` is the rows of one forward pass."""

    def __init__(
        self,
        objective: Objective,
        optim: AdamWConfig,
        *,
        device: torch.device,
        precision: str,
        processes: Processes,
        offload: Offload = "none",
        zero_stage: int | None = None,
        micro_batch_size: int = 1,
    ) -> None:
        # Read by the first import of deepspeed, which would otherwise take the GPU.
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        deepspeed = require_deepspeed()
        if device.type == "cpu":
            keep_freed_memory()
        self.device, self.precision, self.processes = device, precision, processes
        # On the host: the device may not have room for two copies.
        initial = {
            name: weight.to("cpu", copy=True) for name, weight in distinct_state(objective).items()
        }
        self.module = objective.to(device)
        self.clip_norm = optim.clip_norm
        self.offload = offload
        self.stage = default_stage(offload, processes) if zero_stage is None else zero_stage
        # Compilers and ops print to stdout, which the metrics use.
        with compiled_ops(), redirect_stdout(sys.stderr), op_errors_explained():
            load_ops(with_adam=self.offload != "none")
        # A global that an earlier engine with autocast has set: ZeRO would scale gradients.
        from deepspeed.runtime import torch_autocast

        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        plain_linear = F.linear
        # Outside that context, since processes wait for each other here, and one holds its lock.
        with redirect_stdout(sys.stderr):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self.module,
                optimizer=self._build_optimizer(optim),
                config=self._config(micro_batch_size),
                dist_init_required=False,
            )
        # ZeRO-3 replaces it for the whole process by one that does not keep gathered weights, but
        # rounds differently.
        self._linear, F.linear = F.linear, plain_linear
        self._adam = self._optimizer if self.stage == 0 else self._optimizer.optimizer
        # The masters were made of weights that had been rounded.
        self.load_weights(initial)
        self._load_loss_scale({"scale": objective.initial_loss_scale})

    def _build_optimizer(self, optim: AdamWConfig) -> torch.optim.Optimizer:
        if self.offload == "none":
            return build_adamw(self.module, optim)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        groups = build_adamw(self.module, optim).param_groups
        return DeepSpeedCPUAdam(  # type: ignore[no-any-return]
            [{k: group[k] for k in ("params", "weight_decay")} for group in groups],
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.epsilon,
            adamw_mode=True,
        )

    def _config(self, micro_batch_size: int) -> dict[str, Any]:
        low = self.precision != "fp32"
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        }
        pin = False
        if self.offload != "none":
            # The largest buffer of ZeRO: all float32 masters.
            num_bytes = 4 * sum(shape.numel() for shape in shapes_of(self.module).values())
            pin = self.device.type == "cuda" and can_pin(num_bytes)
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
        if self.offload == "parameters":
            zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
        return {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            # The number of micro-batches may change from step to step; we say which is the last.
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.clip_norm if self.stage else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": bool(self.stage) and self.precision == "bf16"},
            "fp16": {"enabled": bool(self.stage) and self.precision == "fp16"},
            "torch_autocast": {
                "enabled": not self.stage and low,
                "dtype": str(DTYPES[self.precision]).removeprefix("torch."),
            },
            "steps_per_print": 10**9,
        }

    def forward(self, batch: Batch) -> Sums:
        """Return the objective's sums; weights are already rounded, or DeepSpeed autocasts."""
        with self._its_linear():
            sums: Sums = self._engine(batch)
        return sums

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`; after the last one the gradients are reduced."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over the processes, our shares add up to the step's loss.
        with self._its_linear():  # activations may be computed again
            self._engine.backward(loss * self.processes.size, scale_wrt_gas=False)

    @contextmanager
    def _its_linear(self) -> Iterator[None]:
        before, F.linear = F.linear, self._linear
        try:
            yield
        finally:
            F.linear = before

    def step(self, *, learning_rate: float) -> Update:
        """Do an AdamW step at `learning_rate`; skip it if the gradient is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage == 0:
            return self._plain_step()
        self._forget_powers()
        try:
            self._engine.step()
        except Exception as error:
            # DynamicLossScaler raises a bare Exception.
            if "minimum" in str(error):
                raise DivergedError(
                    "the gradient was not finite at the smallest loss scale; start a new run with "
                    "a lower learning rate, or in bf16 or fp32"
                ) from None
            raise
        norm = float(self._engine.get_global_grad_norm())
        return Update(grad_norm=norm, skipped=not self._engine.was_step_applied())

    def _forget_powers(self) -> None:
        """Make CPU Adam recompute the powers of beta, by a call for step 0.

        Its C++ code otherwise multiplies those of the last step, and a resumed run would differ in
        the last bits.
        """
        if self.offload == "none":
            return
        group, nothing = self._adam.param_groups[0], [torch.zeros(1) for _ in range(4)]
        numbers = (0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"])
        self._adam.ds_opt_adam.adam_update(self._adam.opt_id, 0, *numbers, *nothing)

    def _plain_step(self) -> Update:
        """Without ZeRO, DeepSpeed neither returns the norm nor checks that it is finite."""
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler:
            scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm).item()
        finite = math.isfinite(norm)
        if finite or scaler:
            self._engine.step()
        else:
            self._engine.zero_grad()
        return Update(grad_norm=norm, skipped=not finite)

    def discard_gradients(self) -> None:
        """Nothing: they are no part of the state, and no step follows."""

    def weights(self) -> dict[str, Tensor]:
        """The float32 masters, where they are."""
        if self.stage == 0:
            return distinct_state(self.module)
        return {name: self._whole(parameter) for name, parameter in self._parameters()}

    def _whole(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """A parameter's float32 master, or one of its moments.

        Of one process it is a view, since a copy of all is 12 bytes a parameter. Several processes
        put it together, and process 0 alone keeps it.
        """
        if self.stage == 0:
            assert moment is not None
            content: Tensor = self._optimizer.state[parameter][moment]
            return content
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if self.processes.size == 1:
            if self.stage == 3:
                part, _ = self._optimizer._get_fp32_opt_state_partition(
                    parameter, release_swap_buffers=True, optim_state_key=moment
                )
            else:
                part = parameter._hp_mapping.get_hp_fragment(moment)  # type: ignore[attr-defined]
            return part[: shape.numel()].view(shape)  # type: ignore[no-any-return]
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole: Tensor = (
            safe_get_full_fp32_param(parameter)
            if moment is None
            else safe_get_full_optimizer_state(parameter, moment)
        )
        return whole.to("cpu" if self.processes.is_first else "meta")

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `weights` into the masters, and rounded into the weights that compute."""
        names = {name for name, _ in self._parameters()}
        if names != weights.keys():
            raise RuntimeError(f"weights {sorted(names ^ weights.keys())} are on one side only")
        for name, parameter in self._parameters():
            self._set(parameter, weights[name])

    @torch.no_grad()
    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param

        shape = getattr(parameter, "ds_shape", parameter.shape)
        if shape != value.shape:
            raise RuntimeError(f"a weight has the shape {list(shape)}, not {list(value.shape)}")
        is_cut = self.stage == 3
        with GatheredParameters([parameter], modifier_rank=0) if is_cut else nullcontext():
            parameter.copy_(value)
        if self.stage:
            safe_set_full_fp32_param(parameter, value.to(self.device, torch.float32))

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Return steps and moments by name, and the loss scale."""
        states = list(self._adam.state.values())
        self._link_moments()
        named = self._parameters() if states else []
        num_steps = max((float(state["step"]) for state in states), default=0.0)
        content = {
            name: {
                "step": torch.tensor(num_steps),
                **{moment: self._whole(parameter, moment) for moment in MOMENTS},
            }
            for name, parameter in named
        }
        return {
            "optimizer": {"optimizer": "adamw", "states": content},
            "scaler": self._loss_scale(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`; raise `DataError` if it is of other parameters."""
        from deepspeed.utils import safe_set_full_optimizer_state

        states = check_states(state["optimizer"], "adamw", shapes_of(self.module))
        self._load_loss_scale(state["scaler"])
        if not states:
            return
        self._make_moments(max(int(content["step"]) for content in states.values()))
        for name, parameter in self._parameters():
            for moment in MOMENTS:
                value = states[name][moment]
                if self.stage == 0:
                    self._optimizer.state[parameter][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value.to(self.device), moment)

    def _make_moments(self, num_steps: int) -> None:
        """Make the state that Adam and ZeRO would make in their first step."""
        is_torch = isinstance(self._adam, torch.optim.AdamW)
        for parameter in self._masters():
            self._adam.state[parameter] = {
                "step": torch.tensor(float(num_steps), device=parameter.device)
                if is_torch
                else num_steps,
                **{moment: torch.zeros_like(parameter, dtype=torch.float32) for moment in MOMENTS},
            }
        self._link_moments()

    def _link_moments(self) -> None:
        """Link each parameter to its part of the flat moments.

        ZeRO does so after Adam has updated its first group, when the second has no moments yet.
        """
        if self.stage in {1, 2}:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        """Return the tensors that Adam updates: flat partitions under ZeRO."""
        if self.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        if self.stage:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return [p for group in self._adam.param_groups for p in group["params"]]

    def _loss_scale(self) -> dict[str, Any]:
        if self.precision != "fp16":
            return {}
        if self.stage == 0:
            state: dict[str, Any] = self._engine.torch_autocast_z0_gradscaler.state_dict()
            return state
        return {"scale": float(self._optimizer.loss_scale)} | {
            name: value
            for name, value in vars(self._optimizer.loss_scaler).items()
            if isinstance(value, int | float | bool)
        }

    def _load_loss_scale(self, state: Mapping[str, Any]) -> None:
        if self.precision != "fp16" or "scale" not in state:
            return
        if self.stage == 0:
            load_loss_scale(self._engine.torch_autocast_z0_gradscaler, state)
            return
        scaler = self._optimizer.loss_scaler
        scaler.cur_scale = state["scale"]
        for name in vars(scaler).keys() & state.keys():
            setattr(scaler, name, state[name])


def default_stage(offload: Offload, processes: Processes) -> int:
    """Return the stage that the offload requires; without offload, 2 for several GPUs, else 0."""
    if offload == "none":
        return 2 if processes.size > 1 else 0
    return {"optimizer": 2, "parameters": 3}[offload]


def can_pin(num_bytes: int) -> bool:
    """Return whether so many bytes of the host's memory can be page-locked; warn if not.

    CUDA's driver decides, not RLIMIT_MEMLOCK: containers set that low, and it does not apply.
    """
    try:
        torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        print(
            f"warning: {num_bytes / 2**30:.1f} GiB of the host's memory cannot be page-locked "
            f"({reason}); offloading continues with pageable memory, whose copies are slower. Give "
            "the container more memory",
            file=sys.stderr,
        )
        return False
    torch._C._host_emptyCache()  # torch keeps freed pinned blocks otherwise
    return True


def load_ops(*, with_adam: bool) -> None:
    """Load the ops that are used, compiled if they are not yet; they stay in DeepSpeed's table."""
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder import CPUAdamBuilder

    if with_adam:
        builder = CPUAdamBuilder()
        # Images are built without a GPU. DeepSpeed ignores ops that were compiled for another
        # accelerator, although this one runs on the CPU.
        with suppress(ImportError):
            builder._loaded_ops[builder.name] = import_module(builder.absolute_name())
        builder.load()
    build_shm_op()  # how processes of one CPU talk; none on a GPU


if __name__ == "__main__":  # `make venv` compiles the ops, so that no run and no test waits for it
    with compiled_ops(), op_errors_explained():
        load_ops(with_adam=True)
