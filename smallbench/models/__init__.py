"""The architectures, in the terms of their papers. `ARCHITECTURES` is the table.

ELECTRA and RoBERTa are BERT's network, so they are in `bert.py`.
"""

from smallbench.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bert": ("smallbench.models.bert:Bert", "BertConfig"),
        "deberta": ("smallbench.models.deberta:Deberta", "DebertaConfig"),
        "electra": ("smallbench.models.bert:Electra", "ElectraConfig"),
        "roberta": ("smallbench.models.bert:Roberta", "RobertaConfig"),
        "roformer": ("smallbench.models.roformer:Roformer", "RoformerConfig"),
    },
    group="smallbench.architectures",
    base="smallbench.models.encoder:Encoder",
    config_base="smallbench.models.config:EncoderConfig",
)
