"""The architectures, in the terms of their papers. `ARCHITECTURES` is the table.

ELECTRA and RoBERTa are BERT's network, so they are in `bert.py`.
"""

from smallbench.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bert": "smallbench.models.bert:Bert",
        "deberta": "smallbench.models.deberta:Deberta",
        "electra": "smallbench.models.bert:Electra",
        "roberta": "smallbench.models.bert:Roberta",
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
