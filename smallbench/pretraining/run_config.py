"""The configuration of a run in its record (`checkpoints.record`), and the way back."""

from __future__ import annotations

from pathlib import Path

from smallbench.checkpoints.record import PLUGINS, Record
from smallbench.config import digest, from_dict, to_dict
from smallbench.data.shards import TokenRows
from smallbench.plugins import use_copies
from smallbench.pretraining.data import shards_digest
from smallbench.train.config import PretrainConfig, plugins_of


def record_of(config: PretrainConfig, rows: TokenRows, data: Path) -> Record:
    """Return what the record of a run says about its configuration and corpus."""
    manifest = rows.manifest
    return {
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


def read_config(run_dir: Path, record: Record) -> PretrainConfig:
    """Return the configuration of a run; classes of plug-ins come from the copies that it keeps."""
    use_copies(record["plugins"], run_dir / PLUGINS)
    return from_dict(PretrainConfig, record["config"])
