"""The console script `smallbench JOB …`: a command line in, one library call, an exit code out.

`jobs.resolve` reads the line, `jobs.manual` has the pages of help; here a job is started, and each
failure becomes one sentence and an exit code.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import yaml

import smallbench
from smallbench import files, plugins
from smallbench.config import differing_keys, to_dict
from smallbench.errors import (
    ConfigError,
    ExitCode,
    SmallbenchError,
    UnavailableError,
    UsageError,
    nearest,
)
from smallbench.jobs.base import JOBS, Job, chosen, load
from smallbench.jobs.manual import manual, overview
from smallbench.jobs.resolve import named_config, resolve

READ_ONLY = "choose a path in a folder that can be written (in a container: /scratch)"
NOT_USABLE = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError


def entry(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main` and exit: the console script and all other programs of this package."""
    code = main(argv)
    if code not in {ExitCode.DONE, ExitCode.USAGE, ExitCode.INTERRUPTED}:
        # Time has run out or the store has failed. A usual exit waits for threads, and so for an
        # upload that has not ended.
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
    except KeyboardInterrupt:
        return _fail(name, "interrupted", ExitCode.SIGINT)
    except BrokenPipeError:
        # The reader went away (`| head`). Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CRASH
    except Exception as error:
        found = _sentence(error)
        if found is None:
            raise
        return _fail(name, *found)


def _dispatch(arguments: list[str]) -> None:
    if arguments[:1] == ["help"]:  # as in git and kubectl
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in {"--help", "-h"}:
        print(overview())
    elif arguments[0] == "--version":
        print(f"smallbench {smallbench.__version__}")
    elif arguments[0].startswith("-"):
        raise UsageError(f"{arguments[0]!r} before a job; write smallbench JOB --flag=value")
    elif arguments[0] not in JOBS:
        raise UsageError(f"unknown job {arguments[0]!r}; {nearest(arguments[0], JOBS)}")
    else:
        job, rest = chosen(load(arguments[0]), arguments[1:])
        if {"--help", "-h"} & {argument.partition("=")[0] for argument in rest}:
            print(manual(job, named_config(job, rest)))
            return
        if job.run is None:
            known = ", ".join(job.actions)
            raise UsageError(
                f"{job.name!r} needs an action: {known}; see smallbench {job.name} --help"
            )
        shared, options, config = resolve(job, rest, os.environ)
        given = (options,) if job.config is None else (options, config)
        if shared.dry_run:
            print(f"# smallbench {job.name}\n{as_yaml(job, options, config)}", end="")
            if job.plan is not None:
                print("".join(f"# {line}\n" for line in job.plan(*given).splitlines()), end="")
        else:
            if job.record:
                print(changes_as_yaml(job, options, config), flush=True)
            try:
                job.run(*given)
            except OSError as error:
                if (named := _about_flag(error, options)) and plugins.explain(error) is None:
                    raise named from None
                raise


def as_yaml(job: Job, options: Any, config: Any = None) -> str:
    """Return options and configuration as one YAML document that `--config` reads back.

    Each value appears once: options that are short for a key are omitted.
    """
    data = {key: value for key, value in to_dict(options).items() if key not in job.shortcuts}
    data |= to_dict(config) if config is not None else {}
    if files := plugins.registered():
        data["plugin"] = [str(plugin.path) for plugin in files]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def changes_as_yaml(job: Job, options: Any, config: Any) -> str:
    """Return values that were given or differ from the recipe, as a document for `--config`.

    The first line says where all values are.
    """
    assert job.config is not None
    values = to_dict(options)
    data = {
        field.name: values[field.name]
        for field in fields(options)
        if field.name not in job.shortcuts
        and getattr(options, field.name) not in (field.default, None)
    }
    given = replace(options, **dict.fromkeys(job.shortcuts))
    base = to_dict(job.config(given))
    data |= {key: new for key, (_, new) in differing_keys(base, to_dict(config)).items()}
    where = job.record.format(**vars(options))
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"# smallbench {job.name}; all values: --dry_run, and in {where}\n{text}"


def _fail(name: str, message: str, code: int) -> int:
    sentence = " ".join(message.split())
    print(f"smallbench{f' {name}' if name else ''}: {sentence}", file=sys.stderr)
    return int(code)


def _sentence(error: Exception) -> tuple[str, int] | None:
    if isinstance(error, SmallbenchError):
        is_about_values = isinstance(error, ConfigError)
        return (is_about_values and plugins.explain(error)) or str(error), error.exit_code
    if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name alone
        remedy = "lower --train.micro_batch_size, or --batch_size in fine-tuning"
        return f"the GPU's memory is full; {remedy}", ExitCode.UNAVAILABLE
    if (text := plugins.explain(error)) is not None:
        return text, ExitCode.CONFIG
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name.partition(".")[0] == "smallbench":
            return None
        install = _how_to_install(error.name)
        return f"this needs {error.name}; {install}", UnavailableError.exit_code
    return _disk_failure(error)


def _about_flag(error: OSError, options: object) -> SmallbenchError | None:
    """Return the sentence that names the flag whose path is at fault; None for other errors."""
    if not isinstance(error, NOT_USABLE) or not isinstance(error.filename, str):
        return None
    file = Path(error.filename.partition(files.TEMPORARY_MARK)[0]).absolute()
    frames = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
    for name, value in vars(options).items():
        path = Path(value).absolute() if isinstance(value, Path | str) else None
        if path is None or (file not in (path, *path.parents) and path not in file.parents):
            continue
        flag = f"--{name}={value}"
        if isinstance(error, FileNotFoundError) and frames[-1] == "mkdir":
            return UnavailableError(
                f"Could not create {flag} ({error.strerror}); choose a writable directory"
            )
        if any(place.is_file() for place in (path, *path.parents)):
            where = "is" if path.is_file() else "is below"
            return ConfigError(f"{flag} {where} a file; expected a directory, or a new name")
        if isinstance(error, IsADirectoryError) and file == path:
            return ConfigError(f"{flag} is a directory; expected a file")
    return None


def _disk_failure(error: Exception) -> tuple[str, ExitCode] | None:
    """Return the sentence and exit code if the file system, not the program, is at fault."""
    number = files.errno_of(error)
    if number in files.NOT_WRITABLE and not getattr(error, "filename", None):
        reason = os.strerror(number)  # perhaps a library wrapped it
        remedy = READ_ONLY if number == errno.EROFS else "make room on the disk"
        return f"a file could not be written ({reason}); {remedy}", ExitCode.UNAVAILABLE
    if not isinstance(error, OSError) or error.errno is None:
        return None
    sentence = f"{error.filename}: " if error.filename else ""
    sentence += error.strerror or str(error)
    if number in {errno.EACCES, errno.EPERM}:
        sentence += (
            f" for uid {os.getuid()}; change the owner, or choose another path (in a container: "
            "chown the mounted folder, or docker run --user)"
        )
    elif number == errno.EROFS:
        sentence += f"; {READ_ONLY}"
    if isinstance(error, NOT_USABLE):
        return sentence, ExitCode.DATA
    if number in files.UNAVAILABLE or isinstance(error, ConnectionError | TimeoutError):
        return sentence, ExitCode.UNAVAILABLE
    return None


def _how_to_install(module: str) -> str:
    """Return the pip command that installs a missing package, as our extra if it is in one."""
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
