"""From a command line to a job's options and configuration.

Python Fire only splits the line into words and flags whose values stay text; everything it would
do with them (run a job before it has seen a mistyped flag, call a method named by a stray word,
turn `1.10` into a number) happens nowhere. The text is read by the annotations of the job's
options, in layers: defaults or recipe < `--config` file < `SMALLBENCH_*` variables < flags. A job
starts only when every layer fits.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from smallbench import plugins
from smallbench.config import (
    Key,
    RangeError,
    annotations_of,
    describe,
    flatten,
    keys_of,
    least_of,
    option,
    override_all,
    read_value,
)
from smallbench.errors import ConfigError, SmallbenchError, UsageError, nearest
from smallbench.jobs import base
from smallbench.jobs.base import Job
from smallbench.storage.base import check_locations

PREFIX = "SMALLBENCH_"
TEST_PREFIX = "SMALLBENCH_TEST_"  # the test suite's own variables are not options

FLAG = re.compile(r"--([A-Za-z][\w.-]*)(=.*)?", re.DOTALL)
DASHED = re.compile(r"-(-|[A-Za-z]|$)")  # words that Fire takes for a flag or a separator; not -1
BARE = "\0"
"""Value of a flag without one; no argument of a process can contain it."""

ELSEWHERE = {
    "lr": "optim.learning_rate",
    "peak_lr": "optim.learning_rate",
    "batch_size": "train.global_batch_size",
    "train_batch_size": "train.global_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "mlm_probability": "objective.mask_fraction",
    "max_seq_length": "sequence_length",
    "block_size": "sequence_length",
    "warmup_ratio": "schedule.warmup_fraction",
    "lr_scheduler_type": "schedule.schedule",
    "max_grad_norm": "optim.clip_norm",
    "steps": "max_steps",
    "logging_steps": "train.log_every_steps",
    "eval_steps": "train.eval_every_steps",
    "save_steps": "train.save_every_steps",
    "save_total_limit": "train.keep_last",
    "gradient_checkpointing": "train.checkpoint_activations",
    "torch_compile": "train.compile",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "resume_from_checkpoint": "resume",
    "output_dir": "run_dir",
    "report_to": "tracker",
    "wandb": "tracker",
}
"""Names of options in Hugging Face's `Trainer` and other trainers, and ours: docs/training.md."""


@dataclass(frozen=True)
class Shared:
    """The flags of every job, beside `--help`."""

    config: Path | None = option(None, help="YAML file with any of these options", metavar="FILE")
    dry_run: bool = option(False, help="print the resolved configuration, touch nothing")
    plugin: tuple[Path, ...] = option(
        (), help="Python files that FILE.py:NAME may mean, if they are in another folder"
    )


@dataclass(frozen=True)
class ValueLayer:
    """Values by key from one place: how a user writes a key there, and what a wrong one raises."""

    values: Mapping[str, Any]
    prefix: str
    error: type[SmallbenchError]
    place: str = ""
    words: Collection[str] = ()  # keys that were given as bare words

    def spelling(self, key: str) -> str:
        """Return the key as it is written after the prefix: `run_dir`, in a variable `RUN_DIR`."""
        return key.upper().replace(".", "__") if self.prefix == PREFIX else key

    def name(self, key: str) -> str:
        """Return what a message calls the key: `--run_dir`, or `RUN_DIR` if it is a bare word."""
        return key.upper() if key in self.words else self.prefix + self.spelling(key)

    def read(self, key: str, annotation: Any, about: Field[Any]) -> Any:
        """Return the value of `key` by its annotation."""
        value, name = self.values[key], self.name(key)
        if value == BARE:
            if annotation is bool or bool in get_args(annotation):
                return True
            kind = describe(annotation).removesuffix(" or none")
            raise self.error(f"{name} needs a value: {name}={kind}")
        try:
            return read_value(name, value, annotation, least=least_of(about))
        except ConfigError as error:
            raise self.error(f"{self.place}{error}") from None

    def unknown(self, key: str, known: Iterable[str]) -> SmallbenchError:
        """Return the error for an unknown key, with the nearest key or those of its section."""
        section, _, name = key.rpartition(".")
        inside = [k for k in known if section and k.startswith(f"{section}.")]
        if (ours := ELSEWHERE.get(name, "")) in known:
            ending = f"did you mean {self.prefix + self.spelling(ours)!r}?"
        elif inside:  # compared without the section, which makes any two of its keys alike
            prefix = self.prefix + self.spelling(f"{section}.")
            spelled = [self.spelling(k.removeprefix(f"{section}.")) for k in inside]
            ending = nearest(self.spelling(name), spelled, prefix=prefix)
        else:
            names = {self.spelling(k) for k in known}
            ending = nearest(self.spelling(key), names, prefix=self.prefix)
            if not ending.startswith("did you mean"):
                top = {self.spelling(k) for k in known if "." not in k}
                ending = nearest(self.spelling(key), top, prefix=self.prefix)
        return self.error(f"{self.place}unknown {self.prefix}{self.spelling(key)}; {ending}")


def resolve(
    job: Job, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Shared, Any, Any]:
    """Return a job's flags, options and (if it has one) configuration from all layers.

    Raises `UsageError` for what is wrong on the command line and `ConfigError` for the rest.
    """
    shared, layers = _layers(job, arguments, environment)
    try:
        return shared, *_resolved(job, layers)
    except RangeError as error:
        raise _with_source(job, layers, error) from None


def _with_source(job: Job, layers: Sequence[ValueLayer], error: RangeError) -> SmallbenchError:
    """Return the error with the value as it was typed, under the name of its flag or variable."""
    shorts = [short for short, key in job.shortcuts.items() if key == error.key]
    for layer in reversed(layers):
        for key in {error.key, *shorts} & layer.values.keys():
            named = replace(error, key=layer.name(key))
            if isinstance(typed := layer.values[key], str) and not isinstance(error.value, str):
                named.value = (typed,)
            return layer.error(f"{layer.place}{named}")
    return error


def _resolved(job: Job, layers: Sequence[ValueLayer]) -> tuple[Any, Any]:
    for layer in layers:
        for path in _values(Shared, [layer]).get("plugin", ()):
            plugins.register(path)
    values = _values(job.options, layers)
    missing = [f for f in fields(job.options) if f.default is MISSING and f.name not in values]
    config, keys = None, {}
    if job.config:
        options = _checked(job.options, **((_example(job) if missing else {}) | values))
        try:
            config = _checked(job.config, options)
        except RangeError as error:  # a value of the recipe, not of a layer
            raise ConfigError(str(error)) from error
    own = annotations_of(job.options)
    if config is not None:
        given = {key: value for layer in layers for key, value in layer.values.items()}
        keys = {k: v for k, v in keys_of(config, given).items() if k not in own}
        _refuse_others(layers, config, keys)
    _refuse_unknown(job, layers, [*own, *keys])  # before missing flags, since it is often the cause
    if missing:
        raise UsageError(_missing(job, missing[0]))
    if config is not None:
        config = _checked(override_all, config, _changes(job, layers, keys))
    options = _checked(job.options, **values)
    check_locations(options)
    return options, config


def _layers(
    job: Job, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Shared, list[ValueLayer]]:
    """Return the flags of every job, and all layers from the lowest to the highest."""
    words, split_flags = split(arguments)
    words, flags = _gathered(job, words), _dotted(job, split_flags)
    for name, word in zip(job.words, words, strict=False):
        if name in flags:
            raise UsageError(f"{name} is given twice: {word!r} and --{name}")
        flags[name] = word
    if stray := words[len(job.words) :]:
        raise UsageError(f"stray word {stray[0]!r}; options are written --name=value")
    variables = {
        variable.removeprefix(PREFIX).lower().replace("__", "."): value
        for variable, value in environment.items()
        if variable.startswith(PREFIX) and not variable.startswith(TEST_PREFIX)
    }
    line = ValueLayer(flags, "--", UsageError, words=job.words[: len(words)])
    upper = [ValueLayer(variables, PREFIX, ConfigError), line]
    shared = Shared(**_values(Shared, upper))
    return shared, [*([_file(shared.config)] if shared.config else []), *upper]


def _dotted(job: Job, flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the flags with `--SECTION.KEY=VALUE` as further values of the option `job.dotted`."""
    words = [
        f"{key}={'true' if value == BARE else value}" for key, value in flags.items() if "." in key
    ]
    if not (job.dotted and words):
        return dict(flags)
    given = flags.get(job.dotted)
    plain = {key: value for key, value in flags.items() if "." not in key}
    return plain | {job.dotted: [*(given.split(",") if given else []), *words]}


def _refuse_unknown(job: Job, layers: Sequence[ValueLayer], known: Sequence[str]) -> None:
    for layer in layers:
        of_every_job = annotations_of(Shared) if layer.prefix else ("plugin",)
        allowed = [*known, *of_every_job]
        for key in layer.values:
            if key not in allowed and not (layer.prefix == PREFIX and _fits_another(job, key)):
                raise layer.unknown(key, allowed if layer.prefix else known)


def _refuse_others(layers: Sequence[ValueLayer], config: Any, keys: Mapping[str, Key]) -> None:
    """Refuse a key that only another class of its section has, such as another optimizer."""
    tables = {f.name: f.metadata["table"] for f in fields(config) if "table" in f.metadata}
    for layer in layers:
        for key in layer.values.keys() - keys.keys():
            section, _, name = key.partition(".")
            if section in tables and (rows := tables[section].names_with(name)):
                chosen = f"{section}.{tables[section].kind}"
                raise layer.error(
                    f"{layer.place}{layer.name(key)} belongs to {layer.name(chosen)}="
                    f"{' or '.join(rows)}, but this run uses {keys[chosen].value}"
                )


def _changes(job: Job, layers: Sequence[ValueLayer], keys: Mapping[str, Key]) -> dict[str, Any]:
    """Return the values of the layers for the configuration; later layers take precedence.

    An option may be short for a key. Raises the layer's error if one layer sets both to different
    values.
    """
    changes: dict[str, Any] = {}
    options = {f.name: f for f in fields(job.options)}
    for layer in layers:
        here = {
            key: layer.read(key, keys[key].annotation, keys[key].about)
            for key in layer.values
            if key in keys
        }
        for short in job.shortcuts.keys() & layer.values.keys():
            key = job.shortcuts[short]
            value = layer.read(short, annotations_of(job.options)[short], options[short])
            if value is None:
                if key not in here:
                    changes.pop(key, None)  # the recipe's value again
            elif here.setdefault(key, value) != value:
                one, other = map(layer.name, (short, key))
                raise layer.error(
                    f"{layer.place}{one}={value} and {other}={here[key]} give one setting two "
                    "values; leave one of them out"
                )
        changes |= here
    return changes


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words of a command line, and its flags with their values as text (or `BARE`).

    Fire splits the line; text with a special meaning for Fire is refused before.
    """
    from fire import Fire
    from fire.decorators import SetParseFn

    tokens: list[str] = []
    seen: set[str] = set()
    for index, token in enumerate(arguments):
        flag = FLAG.fullmatch(token)
        if not flag and DASHED.match(token):
            raise UsageError(f"stray {token!r}; options are written --name=value")
        if flag:
            key = flag[1].replace("-", "_")
            if key in seen:
                raise UsageError(f"--{key} is given twice")
            seen.add(key)
            # Marked here, since Fire reads a bare `--note` as "not te".
            following = arguments[index + 1] if index + 1 < len(arguments) else "--"
            if flag[2] is None and DASHED.match(following):
                token = f"{token}={BARE}"
        tokens.append(token)

    words: list[str] = []
    flags: dict[str, str] = {}

    @SetParseFn(str)  # type: ignore[untyped-decorator]
    def collect(*some_words: str, **some_flags: str) -> None:
        words.extend(some_words)
        flags.update(some_flags)

    Fire(collect, command=tokens, name="smallbench")
    return words, flags


def _gathered(job: Job, words: Sequence[str]) -> list[str]:
    """Assign the words to `job.words`; the last one takes the rest if it is a tuple."""
    last = len(job.words) - 1
    if last >= 0 and get_origin(annotations_of(job.options)[job.words[last]]) is tuple:
        return [*words[:last], *([",".join(words[last:])] if words[last:] else [])]
    return list(words)


def named_config(job: Job, arguments: Sequence[str]) -> Any:
    """Return the configuration of the words in `arguments`, or of the job's first example."""
    if job.config is None:
        return None
    words, _ = split([a for a in arguments if not a.startswith("-")])
    named = dict(zip(job.words, _gathered(job, words), strict=False))
    values = _values(job.options, [ValueLayer(named, "--", UsageError)])
    return job.config(job.options(**{**_example(job), **values}))


def _values(cls: type, layers: Iterable[ValueLayer]) -> dict[str, Any]:
    """Return the values of the layers for the fields of `cls`; later layers take precedence."""
    annotations, about = annotations_of(cls), {f.name: f for f in fields(cls)}
    return {
        key: layer.read(key, annotations[key], about[key])
        for layer in layers
        for key in layer.values
        if key in annotations
    }


def _checked(build: Any, *arguments: Any, **values: Any) -> Any:
    """Call `build(…)`; a `ValueError` means that values contradict each other."""
    try:
        return build(*arguments, **values)
    except SmallbenchError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, with an error for duplicate keys instead of the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


def _file(path: Path) -> ValueLayer:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"--config={path} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"Invalid --config={path}: expected 'key: value' lines")
    flat: dict[str, Any] = {}
    for name, value in data.items():
        for key, one in flatten({str(name): value}).items():
            if key in flat:
                raise ConfigError(f"{path}: {key} is given twice")
            flat[key] = one
    return ValueLayer(flat, "", ConfigError, place=f"{path}: ")


def _example(job: Job) -> dict[str, Any]:
    line = shlex.split(job.examples[0]) if job.examples else []
    words, flags = split(line[1 + len(job.name.split()) :])
    flags.update(zip(job.words, _gathered(job, words), strict=False))
    return _values(job.options, [ValueLayer(flags, "--", UsageError)])


def _fits_another(job: Job, key: str) -> bool:
    """Return whether a variable belongs to another job or to a section of plug-in keys."""
    for name in base.JOBS:
        other = base.load(name)
        known = [one for one in (other, *other.actions.values()) if one.name != job.name]
        if any(key in annotations_of(one.options) for one in known):
            return True
        if name == job.name:
            continue
        config = named_config(other, ())
        if config is not None and (
            key in keys_of(config)
            or any(f.metadata.get("table") and key.startswith(f"{f.name}.") for f in fields(config))
        ):
            return True
    return False


def word_of(field: Field[Any]) -> str:
    """Return what stands for a word in the usage line: `RECIPE`."""
    return str(field.metadata.get("metavar") or field.name.upper())


def _missing(job: Job, field: Any) -> str:
    name = word_of(field) if field.name in job.words else f"--{field.name}"
    example = f"; for example: {job.examples[0]}" if job.examples else ""
    return f"{name} is missing ({field.metadata.get('help', '')}){example}"
