"""The configuration and the corpus of a run in its record (`checkpoints.record`), and back."""

from __future__ import annotations

from pathlib import Path

from smallbench.checkpoints.record import PLUGINS, Record, open_record
from smallbench.config import digest, from_dict, to_dict
from smallbench.data.shards import TokenRows
from smallbench.plugins import use_copies
from smallbench.pretraining.run_data import shards_digest
from smallbench.train.config import PretrainConfig, plugins_of, resumable_keys


def open_run_record(
    run_dir: Path,
    config: PretrainConfig,
    rows: TokenRows,
    data: Path,
    *,
    has_checkpoints: bool,
    allow_changed_code: bool = False,
) -> Record:
    """Return the record in `run_dir`, or a new one; nothing is written.

    Raises `ConfigError` if `run_dir` holds a run of another configuration, corpus or plug-in.
    """
    manifest = rows.manifest
    own = {
        "config": to_dict(config),
        "config_digest": digest(config),
        "data": str(data),
        "corpus": {
            "tokenizer": manifest.tokenizer.fingerprint,
            "pad_id": manifest.tokenizer.pad_id,
            "source": manifest.source,
            "rows": manifest.rows["train"],
            # Equal shards are equal data, wherever they are stored.
            "shards": shards_digest(rows),
        },
        "plugins": [plugin.to_dict() for plugin in plugins_of(config)],
    }
    return open_record(
        run_dir,
        own,
        resumable=resumable_keys(config),
        has_checkpoints=has_checkpoints,
        allow_changed_code=allow_changed_code,
    )


def read_config(run_dir: Path, record: Record) -> PretrainConfig:
    """Return the configuration of a run; classes of plug-ins come from the copies that it keeps."""
    use_copies(record["plugins"], run_dir / PLUGINS)
    return from_dict(PretrainConfig, record["config"])
