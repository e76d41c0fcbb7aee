"""`hub:ORG/NAME[:CONFIG]`: the rows of a data set's train split, through the package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smallbench.data.readers import Rows
from smallbench.data.skips import Skips
from smallbench.errors import DataError, UnavailableError

HUB_PREFIX = "hub:"


def hub_documents(source: str, text_field: str, skips: Skips) -> Iterator[bytes]:
    """Yield the text of each row of `source`.

    Raises `DataError` for a data set that does not have such rows, `UnavailableError` if the hub
    does not answer.
    """
    name, config = _name_and_config(source)
    try:
        import datasets
    except ImportError:
        raise UnavailableError(
            f"{source} needs the package 'datasets': pip install 'smallbench[train]'"
        ) from None
    rows, num_rows = Rows(source, skips, text_field), 0
    try:
        table = datasets.load_dataset(name, config, split="train", streaming=True)
        _check_field(source, getattr(table, "features", None), text_field)
        for row in table:
            num_rows += 1
            if (text := rows.text_of(row)) is not None:
                yield text
    except DataError:
        raise
    except OSError as error:
        if type(error).__name__ == "DatasetNotFoundError":
            raise DataError(
                f"{source} does not exist, or your token (HF_TOKEN) has no access to it; expected "
                "hub:ORG/NAME or hub:ORG/NAME:CONFIG"
            ) from None
        raise UnavailableError(
            f"cannot read {source} ({error}); check the name and the network, "
            "then run the same command again"
        ) from error
    except Exception as error:  # `datasets` raises ValueError, RuntimeError, pyarrow's errors, …
        raise DataError(_explained(source, name, config, error, num_rows)) from error
    rows.report()


def _name_and_config(source: str) -> tuple[str, str | None]:
    name, colon, config = source.removeprefix(HUB_PREFIX).rpartition(":")
    if not colon or "/" in config:  # a local path may have a colon in a folder's name
        name, config = source.removeprefix(HUB_PREFIX), ""
    if not name.strip():
        raise DataError(f"{source!r} names no data set; expected hub:ORG/NAME[:CONFIG]")
    return name, config or None


def _check_field(source: str, features: Any, text_field: str) -> None:
    if not features or "." in text_field:
        return
    if text_field not in features:
        raise DataError(
            f"{source} has no column {text_field!r}, only {', '.join(features)}; "
            "give --text_field=NAME"
        )
    kind = getattr(features[text_field], "dtype", type(features[text_field]).__name__)
    if kind not in {"string", "large_string", "null"}:
        raise DataError(
            f"column {text_field!r} of {source} has {kind}, not text; give --text_field=NAME "
            f"(columns: {', '.join(features)})"
        )


def _explained(source: str, name: str, config: str | None, error: Exception, num_rows: int) -> str:
    text = " ".join(str(error).split())
    if "scripts are no longer supported" in text:
        return (
            f"{source} is a data set with a loading script, which 'datasets' no longer runs; "
            "convert it to parquet or JSON lines and give the files"
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        problem = f"has no configuration {config!r}" if config else "has several configurations"
        return f"{source} {problem}; give hub:{name}:CONFIG with one of {_configs(name, text)}"
    if "Bad split" in text:
        found = text.partition("Available splits:")[2].strip(" []'") or "others"
        return (
            f"{source} has no split 'train', only {found}; save the split that you want as "
            "parquet or JSON lines and give the file"
        )
    cause = error.__cause__ or error
    detail = " ".join(str(cause).split())[:200]
    return f"{source} could not be read after {num_rows:,} rows ({type(cause).__name__}: {detail})"


def _configs(name: str, text: str) -> str:
    import datasets

    try:
        return ", ".join(datasets.get_dataset_config_names(name))
    except Exception:  # only to make the sentence better
        return text.partition("Available:")[2].strip() or "those of its page"
