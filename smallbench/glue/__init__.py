"""GLUE: task table, readers, features, fine-tuning, metrics and stored results."""

from smallbench.registry import Registry

POOLINGS = Registry(
    "pooling",
    {
        "first": "smallbench.glue.classifier:first",
        "mean": "smallbench.glue.classifier:mean",
        "max": "smallbench.glue.classifier:largest",
    },
)
"""How the hidden states of a row become the one vector that the shared head classifies."""
