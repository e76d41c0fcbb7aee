"""The console script `smallbench JOB …`: a command line in, one library call, an exit code out.

Python Fire only splits the line into words and flags whose values stay text; everything it would
do with them (run a job before it has seen a mistyped flag, call a method named by a stray word,
turn `1.10` into a number) happens nowhere. The text is read by the annotations of the job's
options, in layers: defaults or recipe < `--config` file < `SMALLBENCH_*` variables < flags. A job
starts only when every layer fits.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module, metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import yaml

import smallbench
from jobs.base import Job
from smallbench import files
from smallbench.config import (
    Location,
    annotations_of,
    describe,
    flatten,
    keys_of,
    locate,
    option,
    override_all,
    read_value,
    to_dict,
)
from smallbench.errors import (
    ConfigError,
    ExitCode,
    SmallbenchError,
    UnavailableError,
    UsageError,
)
from smallbench.registry import nearest
from smallbench.storage.base import check_endpoint, check_path, is_remote

# In the order in which a newcomer meets them. A job is one file and one line here.
JOBS = {
    "quickstart": "the whole chain in minutes on two CPU cores, without data or network",
    "plan": "what a recipe needs of a GPU: memory, time, energy, money",
    "prepare": "raw text → clean documents → a tokenizer and token shards",
    "pretrain": "token shards → a trained encoder; run it again to resume exactly",
    "export": "a run → a directory that from_pretrained loads without custom code",
    "finetune": "one GLUE task with one seed, from any Hugging Face encoder",
    "checkpoints": "list, verify, pull or prune the checkpoints of a run, also in a bucket",
    "glue": "all GLUE tasks and seeds, and a table with mean and spread",
    "leaderboard": "entries from runs, checked, compared and ranked beside the paper's rows",
    "report": "metrics of one run or several → one HTML page",
    "dashboard": "the same charts as a saved view of a Weights & Biases project",
    "k8s": "stages of a run as Kubernetes Jobs: render, submit, status, logs, cancel",
    "recipes": "the pretraining recipes: size, source, budget, expected score",
    "doctor": "what this machine can do, and what it lacks",
}

EXIT_CODES = (
    "Exit codes: 0 done, 1 crash, 2 wrong usage (nothing was started), 65 data unusable, "
    "69 something needed is missing, 70 diverged, 75 saved and interrupted: run it again, "
    "76 another writer, 77 credentials refused, 78 wrong configuration, 130 and 143 interrupted."
)

PREFIX = "SMALLBENCH_"
TEST_PREFIX = "SMALLBENCH_TEST_"  # the test suite's own variables are no options

FLAG = re.compile(r"--([A-Za-z][\w.-]*)(=.*)?", re.DOTALL)
LOCATION = re.compile(r"\s*[\"']?(s3|s3a|s3n|gs|file):", re.IGNORECASE)
"""A storage's URL, in the value of an option that may also be something else (a hub id)."""
DASHED = re.compile(r"-(-|[A-Za-z]|$)")  # what Fire takes for a flag or a separator; not -1
BARE = "\0"
"""Value of a flag without one; no argument of a process can contain it."""


@dataclass(frozen=True)
class Shared:
    """The flags of every job, beside `--help`."""

    config: Path | None = option(None, help="YAML file with any of these options", metavar="FILE")
    dry_run: bool = option(False, help="print the resolved configuration, touch nothing")


@dataclass(frozen=True)
class Layer:
    """Values by key from one place: how a user writes a key there, and what a wrong one raises."""

    values: Mapping[str, Any]
    prefix: str
    error: type[SmallbenchError]
    place: str = ""

    def spelling(self, key: str) -> str:
        """The key as it is written after the prefix: `run_dir`, in a variable `RUN_DIR`."""
        return key.upper().replace(".", "__") if self.prefix == PREFIX else key

    def read(self, key: str, annotation: Any) -> Any:
        """The value of `key` by its annotation."""
        value, name = self.values[key], self.prefix + self.spelling(key)
        if value == BARE:
            if annotation is bool or bool in get_args(annotation):
                return True
            kind = describe(annotation).removesuffix(" or none")
            raise self.error(f"{name} needs a value: {name}={kind}")
        try:
            return read_value(self.place + name, value, annotation)
        except ConfigError as error:
            raise self.error(str(error)) from None

    def unknown(self, key: str, known: Iterable[str]) -> SmallbenchError:
        """The error for a key that is none, with the nearest one, or those of its section."""
        section, _, name = key.rpartition(".")
        inside = [k for k in known if section and k.startswith(f"{section}.")]
        if inside:  # compared without the section, which makes any two of its keys alike
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


def entry(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script, and every other program of this package: `main`, and out."""
    code = main(argv)
    if code not in {ExitCode.DONE, ExitCode.USAGE, ExitCode.INTERRUPTED}:
        # The time is over, or the storage is: an upload that is under way must not hold the exit
        # up, as Python would let it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. A crash, and only a crash, has a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments and arguments[0] in JOBS else ""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "→" gets "?", no crash
    try:
        _dispatch(arguments)
        sys.stdout.flush()  # Here, where a closed pipe can still be caught.
        return ExitCode.DONE
    except SmallbenchError as error:
        return _fail(name, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", ExitCode.SIGINT)
    except BrokenPipeError:
        # The reader went away (`| head`). Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CRASH
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in {"jobs", "smallbench"}:
            raise
        message = f"this needs {error.name}; {_how_to_install(error.name)}"
        return _fail(name, message, UnavailableError.exit_code)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported for its name alone
            raise
        remedy = "lower --train.micro_batch_size, or --batch_size in fine-tuning"
        return _fail(name, f"the GPU's memory is full; {remedy}", ExitCode.UNAVAILABLE)
    except Exception as error:
        if failure := _disk_failure(error):
            return _fail(name, *failure)
        raise


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"--help", "-h"}:
        print(overview())
    elif arguments[0] == "--version":
        print(f"smallbench {smallbench.__version__}")
    elif arguments[0].startswith("-"):
        raise UsageError(f"{arguments[0]!r} before a job; write smallbench JOB --flag=value")
    elif arguments[0] not in JOBS:
        raise UsageError(f"unknown job {arguments[0]!r}; {nearest(arguments[0], JOBS)}")
    else:
        job = load(arguments[0])
        if {"--help", "-h"} & {argument.partition("=")[0] for argument in arguments[1:]}:
            print(manual(job))
            return
        shared, options, config = resolve(job, arguments[1:], os.environ)
        if shared.dry_run:
            print(f"# smallbench {job.name}\n{as_yaml(options, config)}", end="")
        elif job.config is None:
            job.run(options)
        else:
            if job.prints_config:
                print(as_yaml(options, config), flush=True)
            job.run(options, config)


def load(name: str) -> Job:
    """The job of that name; its module imports nothing heavy until it runs."""
    job = import_module(f"jobs.{name}").JOB
    assert isinstance(job, Job)
    return job


# From a command line to options and a configuration


def resolve(
    job: Job, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Shared, Any, Any]:
    """A job's flags, options and (where it has one) configuration from all layers.

    Raises `UsageError` for what is wrong on the command line and `ConfigError` for the rest.
    """
    words, flags = split(arguments)
    words = _gathered(job, words)
    for name in job.words[: len(words)]:
        if name in flags:
            raise UsageError(f"{name} is given twice: {words[0]!r} and --{name}")
        flags[name] = words.pop(0)
    if words:
        raise UsageError(f"stray word {words[0]!r}; options are written --name=value")
    variables = {
        variable.removeprefix(PREFIX).lower().replace("__", "."): value
        for variable, value in environment.items()
        if variable.startswith(PREFIX) and not variable.startswith(TEST_PREFIX)
    }
    upper = [Layer(variables, PREFIX, ConfigError), Layer(flags, "--", UsageError)]
    shared = Shared(**_values(Shared, upper))
    layers = [*([_file(shared.config)] if shared.config else []), *upper]

    values = _values(job.options, layers)
    required = [f for f in fields(job.options) if f.default is MISSING]
    missing = [f for f in required if f.name not in values]
    config = None
    if job.config:
        stand_ins = _example(job) if missing else {}
        config = _checked(job.config, _checked(job.options, **{**stand_ins, **values}))

    # Before what is missing: a mistyped flag is often why.
    own = list(annotations_of(job.options))
    known = [*own, *(keys_of(config) if config is not None else [])]
    for layer in layers:
        allowed = [*known, *(annotations_of(Shared) if layer in upper else [])]
        for key in layer.values:
            if key not in allowed and not (layer.prefix == PREFIX and _fits_another(job, key)):
                raise layer.unknown(key, allowed)
    if missing:
        raise UsageError(_missing(job, missing[0]))

    if config is not None:
        changes: dict[str, Any] = {}
        for layer in layers:
            for key, value in _values(job.options, [layer]).items():
                if key in job.shortcuts and value is not None:
                    changes[job.shortcuts[key]] = value
            for key in layer.values:
                if key in known and key not in own:
                    changes[key] = layer.read(key, _annotation(config, key))
        config = _checked(override_all, config, changes)
    options = _checked(job.options, **values)
    _check_locations(options)
    return shared, options, config


def _check_locations(options: Any) -> None:
    """Refuse what looks like a URL and is none, in every flag that takes a URL or a path."""
    for key, annotation in annotations_of(type(options)).items():
        value = getattr(options, key)
        kinds = {annotation, *get_args(annotation)}
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path):
                check_path(each, name=f"--{key}")
            elif key == "endpoint_url" and each is not None:
                check_endpoint(each, name=f"--{key}")
            elif isinstance(each, str) and (
                Location in kinds or key == "storage" or LOCATION.match(each)
            ):
                is_remote(each, name=f"--{key}")


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words of a command line, and its flags with their values as text (or `BARE`).

    Fire does the splitting; what it would act upon is refused before it sees it.
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
    """The words as `job.words` names them: all that are left for the last, where it is a tuple."""
    last = len(job.words) - 1
    if last >= 0 and get_origin(annotations_of(job.options)[job.words[last]]) is tuple:
        return [*words[:last], *([",".join(words[last:])] if words[last:] else [])]
    return list(words)


def as_yaml(options: Any, config: Any = None) -> str:
    """Options and configuration as one YAML document, which `--config` reads back."""
    data = to_dict(options) | (to_dict(config) if config is not None else {})
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _values(cls: type, layers: Iterable[Layer]) -> dict[str, Any]:
    """What the layers say about the fields of `cls`; later layers win."""
    annotations = annotations_of(cls)
    return {
        key: layer.read(key, annotations[key])
        for layer in layers
        for key in layer.values
        if key in annotations
    }


def _checked(build: Any, *arguments: Any, **values: Any) -> Any:
    """`build(…)`, where a `ValueError` says that values do not fit each other."""
    try:
        return build(*arguments, **values)
    except SmallbenchError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _file(path: Path) -> Layer:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"--config={path} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"--config={path} holds no 'key: value' lines")
    data = {str(key): value for key, value in data.items()}
    return Layer(flatten(data), "", ConfigError, place=f"{path}: ")


def _example(job: Job) -> dict[str, Any]:
    """The options of the job's first example: stand-ins for what `--help` was not told."""
    words, flags = split(shlex.split(job.examples[0])[2:]) if job.examples else ([], {})
    flags.update(zip(job.words, _gathered(job, words), strict=False))
    return _values(job.options, [Layer(flags, "--", UsageError)])


def _example_config(job: Job) -> Any:
    return job.config(job.options(**_example(job))) if job.config else None


def _fits_another(job: Job, key: str) -> bool:
    others = (load(name) for name in JOBS if name != job.name)
    return any(
        key in annotations_of(other.options)
        or (other.config is not None and key in keys_of(_example_config(other)))
        for other in others
    )


def _annotation(config: Any, key: str) -> Any:
    section, name = locate(config, key)
    return annotations_of(type(section))[name]


def _missing(job: Job, field: Any) -> str:
    name = field.name.upper() if field.name in job.words else f"--{field.name}"
    example = f"; for example: {job.examples[0]}" if job.examples else ""
    return f"{name} is missing ({field.metadata.get('help', '')}){example}"


# Pages of help


def overview() -> str:
    """The page of `smallbench --help`."""
    width = max(map(len, JOBS))
    rows = [f"  {name:<{width}}  {summary}" for name, summary in JOBS.items()]
    return "\n".join(
        [
            "usage: smallbench JOB [--option=value …]",
            "",
            _wrap(
                "Pretrain small language encoders from scratch on one 16 GB GPU (or a CPU), "
                "fine-tune them on GLUE, and compare them fairly. Start with 'smallbench "
                "quickstart'; the jobs below are the steps of the same chain, in order."
            ),
            "",
            "jobs:",
            *rows,
            "",
            _wrap(
                "'smallbench JOB --help' explains a job, its options and shows examples. With "
                "--dry_run every job prints its resolved configuration and touches nothing."
            ),
            "",
            _wrap(EXIT_CODES),
        ]
    )


def manual(job: Job) -> str:
    """The page of `smallbench JOB --help`: what the job is for, its options, examples."""
    optional = {field.name for field in fields(job.options) if field.default is not MISSING}
    word = "".join(f" [{n.upper()}]" if n in optional else f" {n.upper()}" for n in job.words)
    sections = " [--SECTION.KEY=VALUE …]" if job.config else ""
    page = [
        f"usage: smallbench {job.name}{word} [--option=value …]{sections}",
        "",
        _prose(import_module(f"jobs.{job.name}").__doc__ or ""),
        "",
        "options:",
        *_option_rows(job.options, job.words),
        "",
        "options of every job:",
        *_option_rows(Shared, ()),
        *_row("--help", "print this page"),
    ]
    if job.examples:
        page += ["", "examples:", *(f"  {example}" for example in job.examples)]
    if job.config:
        config = _example_config(job)
        page += ["", "configuration keys, with their values in the first example:"]
        for key in keys_of(config):
            if key in annotations_of(job.options):
                continue
            section, name = locate(config, key)
            about = next(f.metadata for f in fields(section) if f.name == name)
            left = f"--{key}={about.get('metavar') or describe(_annotation(config, key))}"
            page += _row(left, about.get("help", ""), getattr(section, name), shown=True, indent=46)
    page += [
        "",
        _wrap(
            f"Each option can also stand in the --config file ('run_dir: runs/a') or in a variable "
            f"({PREFIX}RUN_DIR; a section's key with two underscores, {PREFIX}SECTION__KEY). "
            "A flag wins over a variable, a variable over the file, the file over the defaults."
        ),
        "",
        _wrap(EXIT_CODES),
    ]
    return "\n".join(page)


def _option_rows(cls: type, words: Sequence[str]) -> list[str]:
    rows = []
    for field in sorted(fields(cls), key=lambda f: f.default is not MISSING):  # required first
        annotation, help = annotations_of(cls)[field.name], field.metadata.get("help", "")
        kind = describe(annotation).removesuffix(" or none")
        left = f"--{field.name}={field.metadata.get('metavar') or kind}"
        if field.name in words:
            left = field.name.upper()
        elif annotation is bool and field.default is False:
            left = f"--{field.name}"
        if field.default is MISSING:
            rows += _row(left, f"{help} (required)")
        else:
            rows += _row(left, help, field.default, shown=field.default not in (None, False, ()))
    return rows


def _row(
    left: str, text: str, value: Any = None, *, shown: bool = False, indent: int = 34
) -> list[str]:
    """A flag and, in a column beside it, what it means and its default."""
    if shown:
        text = f"{text} [{_plain(value)}]".strip()
    lines = textwrap.wrap(text, max(_columns() - indent, 30)) or [""]
    if len(left) > indent - 4:
        return [f"  {left}", *(f"{'':{indent}}{line}" for line in lines)]
    return [f"  {left:<{indent - 2}}{lines[0]}", *(f"{'':{indent}}{line}" for line in lines[1:])]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _wrap(text: str) -> str:
    return textwrap.fill(text, _columns())


def _prose(text: str) -> str:
    """A docstring with its paragraphs wrapped; indented ones keep their lines."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(p if re.match(r"\s", p) else _wrap(" ".join(p.split())) for p in paragraphs)


# Failures in one sentence


def _fail(name: str, message: str, code: int) -> int:
    sentence = " ".join(message.split())
    print(f"smallbench{f' {name}' if name else ''}: {sentence}", file=sys.stderr)
    return int(code)


def _disk_failure(error: Exception) -> tuple[str, ExitCode] | None:
    """The sentence and exit code if the file system, not the program, is at fault."""
    number = files.errno_of(error)
    if not isinstance(error, OSError) or error.errno is None:  # perhaps a library wrapped it
        if number not in files.NOT_WRITABLE:
            return None
        reason = os.strerror(number)
        return (
            f"a file could not be written ({reason}); make room on the disk",
            ExitCode.UNAVAILABLE,
        )
    sentence = f"{error.filename}: " if error.filename else ""
    sentence += error.strerror or str(error)
    not_usable = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    if isinstance(error, not_usable):
        return sentence, ExitCode.DATA
    if number in files.UNAVAILABLE or isinstance(error, ConnectionError | TimeoutError):
        return sentence, ExitCode.UNAVAILABLE
    return None


def _how_to_install(module: str) -> str:
    """The pip command that brings a missing package, as an extra of this one where it is in one."""
    package = module.partition(".")[0].replace("_", "-").lower()
    try:
        requirements = metadata.requires("smallbench") or []
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        requirements = []
    for line in requirements:
        match = re.match(r"([\w-]+).*; extra == ['\"](\w+)['\"]", line)
        if match and match[1].replace("_", "-").lower() == package:
            return f"pip install 'smallbench[{match[2]}]'"
    return f"pip install {package}"


if __name__ == "__main__":
    entry()
