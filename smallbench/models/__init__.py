"""The architectures: one file each, in the terms of its paper. `ARCHITECTURES` is the table."""

from smallbench.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bert": "smallbench.models.bert:Bert",
        "deberta": "smallbench.models.deberta:Deberta",
        "electra": "smallbench.models.electra:Electra",
        "roberta": "smallbench.models.roberta:Roberta",
    },
)
