"""The architectures: one file each, in the terms of its paper. `ARCHITECTURES` is the table."""

from smallbench.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bert": "smallbench.models.bert:Bert",
        "deberta": "smallbench.models.deberta:Deberta",
        "electra": "smallbench.models.electra:Electra",
        "modern": "smallbench.models.modern:Modern",
        "roberta": "smallbench.models.roberta:Roberta",
    },
    group="smallbench.architectures",
    base="smallbench.models.encoder:Encoder",
    configs={
        "bert": "smallbench.models.config:BertConfig",
        "deberta": "smallbench.models.config:DebertaConfig",
        "electra": "smallbench.models.config:ElectraConfig",
        "modern": "smallbench.models.config:ModernConfig",
        "roberta": "smallbench.models.config:RobertaConfig",
    },
    config_base="smallbench.models.config:EncoderConfig",
)
