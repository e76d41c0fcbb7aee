"""GLUE: task table, readers, features, fine-tuning, metrics and stored results."""

from smallbench.registry import Registry

POOLINGS = Registry(
    "pooling",
    {
        "first": "smallbench.glue.poolings:first",
        "mean": "smallbench.glue.poolings:mean",
        "max": "smallbench.glue.poolings:largest",
    },
)
"""How the hidden states of a row become the one vector that the shared head classifies."""
