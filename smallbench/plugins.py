"""Code of a user's own: found by the name that the user gives, hashed, and kept with the run.

An optimizer is `def build(module: nn.Module, config: MyConfig) -> torch.optim.Optimizer`, where
`MyConfig` is a frozen dataclass that extends `train.config.OptimizerConfig`, in a file of your own:
`--optim.optimizer=my_file.py:build`. What to write for the other kinds is said where their tables
are, in the `__init__.py` of `models`, `objectives`, `recipes`, `train` (schedules), `data`
(tokenizers) and `glue` (poolings), and in `glue.tasks`.

A reference is `FILE.py:NAME` or `package.module:NAME`. In configurations a file stands without its
folder (`my_idea.py:GatedBert`), so that a run does not change its identity with the place it was
started from. Code is executed by `resolve` alone; `register`, `plugin_of` and everything that
shows a run or an entry only read text.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from smallbench.errors import ConfigError, SmallbenchError, nearest

MAX_BYTES = 1_000_000
"""Of a plug-in's text: a copy travels in each run's record, and in a ConfigMap (1 MiB)."""


@dataclass(frozen=True)
class Plugin:
    """The text of one file, or of all Python files of one installed package."""

    name: str
    """`my_idea.py`, or the package's name."""
    sha256: str
    """Of the file's bytes; of a package, of the lines `SHA-256  PATH` of its files."""
    files: Mapping[str, str]
    """Path → text."""
    path: Path
    """Where it was read: the file, or the package's folder."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a run's record and an entry."""
        return {"name": self.name, "sha256": self.sha256, "files": dict(self.files)}


_FILES: dict[str, Plugin] = {}
"""Plug-in files by name: those that were named in this process, and those of runs that it reads."""
_GIVEN: set[str] = set()
"""Names of the files that the user gave by their path."""
_MODULES: dict[str, ModuleType] = {}
"""Executed files, by their hash."""
_PATHS: set[str] = set()
"""File names of code that plug-ins brought, as tracebacks have them."""


def is_reference(name: object) -> bool:
    """Return whether `name` is written as `FILE.py:NAME` or `package.module:NAME`."""
    place, colon, attribute = str(name).rpartition(":")
    return bool(colon and place and attribute.isidentifier())


def canonical(reference: str) -> str:
    """Return the reference without a folder; registers the file."""
    place, _, attribute = reference.rpartition(":")
    if place.endswith(".py"):
        return f"{_file(place).name}:{attribute}"
    return reference


def plugin_of(reference: str) -> Plugin:
    """Return the source of a reference; it is read, not executed.

    Raises `ConfigError`.
    """
    place = reference.rpartition(":")[0]
    return _file(place) if place.endswith(".py") else _package(place)


def register(path: Path) -> Plugin:
    """Let the name of the file at `path` stand for it in this process.

    Raises `ConfigError` if the file cannot be read, or another one of the same name is in use.
    """
    plugin = _read(path.expanduser())
    known = _FILES.get(plugin.name)
    if known and plugin.name in _GIVEN and known.sha256 != plugin.sha256:
        raise ConfigError(
            f"Two different plug-ins are called {plugin.name}: {known.path} and {plugin.path}; "
            "rename one of them"
        )
    _FILES[plugin.name] = plugin
    _GIVEN.add(plugin.name)
    return plugin


def registered() -> list[Plugin]:
    """Return the plug-in files that the user of this process gave, by name."""
    return [_FILES[name] for name in sorted(_GIVEN)]


def use_copies(plugins: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Use the copies that a run stored in its record instead of the original files.

    `folder` has them as files. Raises `ConfigError` if a text does not match its recorded hash.
    """
    for kept in plugins:
        name, files = kept["name"], kept["files"]
        plugin = Plugin(name, kept["sha256"], files, folder / kept["sha256"][:12] / name)
        if sha256_of(name, _encoded(files)) != plugin.sha256:
            raise ConfigError(f"The run's copy of the plug-in {name} does not match its SHA-256")
        if name.endswith(".py"):
            _FILES[name] = plugin
            continue
        found = _package(name)
        if found.sha256 != plugin.sha256:
            raise ConfigError(
                f"The installed package {name} is not the one that the run was trained with "
                f"(SHA-256 {found.sha256[:12]}, not {plugin.sha256[:12]}); install that version, "
                f"whose files are in {plugin.path}"
            )


def write_copies(
    plugins: Iterable[Mapping[str, Any]], folder: Path, write: Callable[[Path, str], None]
) -> None:
    """Keep the files of plug-ins below `folder`, each version in a folder of its own."""
    for plugin in plugins:
        for name, text in plugin["files"].items():
            path = folder / plugin["sha256"][:12] / name
            if not path.exists():
                write(path, text)


def resolve(reference: str) -> Any:
    """Return the object that a reference names.

    Executes the plug-in's code.

    Raises `ConfigError`, with file and line if the code itself raises.
    """
    place, _, attribute = reference.rpartition(":")
    plugin = plugin_of(reference)
    try:
        if place.endswith(".py"):
            module = _module(plugin)
        else:
            _PATHS.update(str(plugin.path / name) for name in plugin.files)
            module = importlib.import_module(place)
    except Exception as error:
        raise ConfigError(explain(error) or f"{reference} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{plugin.path} has no {attribute!r}; {nearest(attribute, public)}")
    return getattr(module, attribute)


def reference_of(cls: type, candidates: Callable[[Any], bool]) -> str:
    """Return the reference of a plug-in's object, as configurations have it.

    The object is the only one in the module of `cls` that `candidates` accepts.
    """
    module = sys.modules.get(cls.__module__)
    plugin = next(
        (_FILES[name] for name in _FILES if _MODULES.get(_FILES[name].sha256) is module), None
    )
    place = plugin.name if plugin else cls.__module__
    found = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == cls.__module__ and candidates(value)
    ]
    if len(found) != 1:
        several = f"several use it: {', '.join(sorted(found))}" if found else "none uses it"
        raise ConfigError(
            f"{place} must have one class or function whose 'config' is a {cls.__name__}, and "
            f"{several}"
        )
    return f"{place}:{found[0]}"


def explain(error: BaseException) -> str | None:
    """Return one sentence with file and line if plug-in code raised `error`; None if it did not."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if place := _place(link):
            if isinstance(link, SmallbenchError):
                return f"{link} ({place})"
            what = " ".join(str(link.msg if isinstance(link, SyntaxError) else link).split())
            kind = type(link).__name__
            return f"The plug-in failed at {place}: {kind}" + (f": {what}" if what else "")
        link = link.__cause__ or link.__context__
    return None


@contextmanager
def nothing_left(folder: Path, *, is_kept: Callable[[], bool]) -> Iterator[None]:
    """Delete files written to `folder` if a plug-in raises, unless they are worth keeping."""
    missing = next((p for p in reversed((folder, *folder.parents)) if not p.exists()), None)
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    try:
        yield
    except Exception as error:
        if folder.is_dir() and not is_kept() and explain(error):
            for path in list(folder.iterdir()):
                if path.name not in before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            while missing is not None and not any(folder.iterdir()):
                folder.rmdir()
                if folder == missing:
                    break
                folder = folder.parent
        raise


def _place(error: BaseException) -> str | None:
    """`FILE:LINE` of the innermost frame in plug-in code."""
    if isinstance(error, SyntaxError) and error.filename in _PATHS:
        return f"{error.filename}:{error.lineno}"
    frames = [(f.f_code.co_filename, line) for f, line in walk_tb(error.__traceback__)]
    places = [f"{name}:{line}" for name, line in frames if name in _PATHS]
    return places[-1] if places else None


def _file(place: str) -> Plugin:
    """Return the plug-in of a file's path, or of the name of a file that is known already."""
    if place in _FILES:
        return _FILES[place]
    return register(Path(place))


def _read(path: Path) -> Plugin:
    try:
        content = path.read_bytes()
        text = content.decode()
    except FileNotFoundError:
        raise ConfigError(f"The plug-in file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"The plug-in file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The plug-in file {path} is not UTF-8 text") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"The plug-in file {path} has {len(content):,} bytes; expected up to 1 MB"
        )
    return Plugin(
        path.name, hashlib.sha256(content).hexdigest(), {path.name: text}, path.absolute()
    )


def _package(module: str) -> Plugin:
    """Return the installed package that `module` is in, as its Python files."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)  # of a top-level name: nothing is executed
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"There is no Python module {top!r}; install its package or add its folder to "
            "PYTHONPATH, or name a file as FILE.py:NAME"
        )
    origin = Path(spec.origin)
    folder = origin.parent if spec.submodule_search_locations else None
    paths = sorted(folder.rglob("*.py")) if folder else [origin]
    files = {}
    for path in paths:
        name = f"{top}/{path.relative_to(folder)}" if folder else path.name
        files[name] = path.read_text(encoding="utf-8", errors="replace")
    if sum(map(len, files.values())) > MAX_BYTES:
        raise ConfigError(
            f"The package {top!r} has more than 1 MB of Python files, too much to keep a copy with "
            "each run; put the idea into one file"
        )
    return Plugin(
        top, sha256_of(top, _encoded(files)), files, origin.parents[1] if folder else origin.parent
    )


def sha256_of(name: str, files: Mapping[str, bytes]) -> str:
    """The hash of the plug-in `name` with these files; "" if the file itself is not among them."""
    hashes = {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
    if name.endswith(".py"):
        return hashes.get(name, "") if len(files) == 1 else ""
    lines = "".join(f"{sha}  {key}\n" for key, sha in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _encoded(files: Mapping[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


def _module(plugin: Plugin) -> ModuleType:
    """Return the executed file; the same text is executed once."""
    if plugin.sha256 not in _MODULES:
        _PATHS.add(str(plugin.path))
        module = ModuleType(f"smallbench_plugin_{plugin.sha256[:12]}")
        module.__file__ = str(plugin.path)
        code = compile(plugin.files[plugin.name], str(plugin.path), "exec", dont_inherit=True)
        sys.modules[module.__name__] = module  # dataclasses look their module up
        try:
            exec(code, module.__dict__)  # noqa: S102 - the user named this file
        except BaseException:
            del sys.modules[module.__name__]
            raise
        _MODULES[plugin.sha256] = module
    return _MODULES[plugin.sha256]


def config_class_of(thing: Any) -> type | None:
    """Return the configuration class that a class or function declares.

    A class declares it by an annotation (`config: GatedConfig`) or by the `config` argument of its
    constructor, whichever is nearer in the inheritance; a function by its `config` argument.
    """
    owners = [thing]
    if inspect.isclass(thing):
        owners = [owner for cls in thing.__mro__ for owner in (cls, vars(cls).get("__init__"))]
    for owner in filter(callable, owners):
        annotation = inspect.get_annotations(owner).get("config")
        if isinstance(annotation, str):
            names = vars(sys.modules[owner.__module__])
            annotation = eval(annotation, names)  # noqa: S307 - an annotation of imported code
        if isinstance(annotation, type):
            return annotation
    return None
