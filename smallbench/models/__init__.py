"""The architectures: one file each, in the terms of its paper. `ARCHITECTURES` is the table."""

from smallbench.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bert": "smallbench.models.bert:Bert",
        "deberta": "smallbench.models.deberta:Deberta",
        "electra": "smallbench.models.electra:Electra",
        "roberta": "smallbench.models.roberta:Roberta",
        "roformer": "smallbench.models.roformer:Roformer",
    },
    group="smallbench.architectures",
    base="smallbench.models.encoder:Encoder",
    configs={
        "bert": "smallbench.models.config:BertConfig",
        "deberta": "smallbench.models.config:DebertaConfig",
        "electra": "smallbench.models.config:ElectraConfig",
        "roberta": "smallbench.models.config:RobertaConfig",
        "roformer": "smallbench.models.config:RoformerConfig",
    },
    config_base="smallbench.models.config:EncoderConfig",
)
