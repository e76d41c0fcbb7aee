"""Our weights under transformers' names, and back.

transformers' `Bert*` classes have no factorised embedding, and its `Electra*` classes are exactly
BERT with one. So a BERT with `embedding_size < hidden_size` is exported as Electra, else as Bert. A
DeBERTa with the head for replaced tokens is exported as a bare encoder, since transformers has no
class for that head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from smallbench.errors import ConfigError
from smallbench.models import ARCHITECTURES
from smallbench.models.config import (
    BertConfig,
    DebertaConfig,
    ElectraConfig,
    EncoderConfig,
    RobertaConfig,
    RoformerConfig,
)


@dataclass(frozen=True)
class Rule:
    """Name and conversion of one of our tensors."""

    theirs: tuple[str, ...]
    pack: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: (tensor,)
    unpack: Callable[..., Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Target:
    """The transformers class of a model, its configuration and names."""

    model_type: str
    class_name: str
    config: Mapping[str, Any]
    rules: Mapping[str, Rule]
    """Our parameter's name → its rule."""
    left_behind: frozenset[str] = frozenset()
    """Our parameters without a place in transformers' class."""
    constants: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Tensors of transformers' class that are not trained, and what computes them."""

    def pack(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict → transformers'. Raises `KeyError` if a weight has no rule."""
        packed = {name: compute() for name, compute in self.constants.items()}
        for ours, tensor in state.items():
            if ours not in self.left_behind:
                rule = self.rules[ours]
                packed |= zip(rule.theirs, (t.clone() for t in rule.pack(tensor)), strict=True)
        return packed

    def unpack(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """transformers' state dict → ours, rows of padding filled with zeros."""
        return {
            ours: rule.unpack(*(theirs[name] for name in rule.theirs)).clone()
            for ours, rule in self.rules.items()
        }

    def body(self) -> Target:
        """Return the target without the head: only the weights of transformers' bare model."""
        prefix = f"{self.model_type}."
        rules = {
            ours: rule
            for ours, rule in self.rules.items()
            if all(name.startswith(prefix) for name in rule.theirs)
        }
        return replace(self, rules=rules)


FINETUNING_DROPOUT = 0.1
"""Dropout of an exported configuration, whatever pretraining used: the export will be fine-tuned,
and fine-tuning on small tasks needs dropout (Geiping & Goldstein 2022, §4.2)."""


def body_of(theirs: Mapping[str, Any]) -> tuple[EncoderConfig, Target] | None:
    """Return our configuration of transformers' model without its head, and the target.

    `theirs` is transformers' configuration as a dictionary. None if we do not have the network: an
    unknown architecture, or an option of one (another activation, a decoder, …).
    """
    model_type = theirs["model_type"]
    if model_type not in ARCHITECTURES or any(theirs.get(name) for name in UNKNOWN_OPTIONS):
        return None
    config_class = ARCHITECTURES.config_class(model_type)
    theirs = {"embedding_size": theirs["hidden_size"], **theirs}
    values = {
        known.name: theirs[known.name]
        for known in fields(config_class)
        if known.name in theirs and known.name != "architecture"
    }
    if config_class is RobertaConfig:
        values["max_position_embeddings"] -= theirs["pad_token_id"] + 1
    if config_class is DebertaConfig:
        if values["max_relative_positions"] < 1:  # "as many as there are positions"
            values["max_relative_positions"] = theirs["max_position_embeddings"]
            theirs["max_relative_positions"] = theirs["max_position_embeddings"]
        theirs["pos_att_type"] = sorted(theirs["pos_att_type"] or ())
    try:
        config: Any = config_class(**values)
    except ConfigError:
        return None
    # Only Electra's classes depend on the head; the body does not.
    head = "replaced" if config_class is ElectraConfig else "tokens"
    target = built_in_target(config, head=head, pad_token_id=theirs["pad_token_id"])
    free = {"hidden_dropout_prob", "attention_probs_dropout_prob", "tie_word_embeddings"}
    # An option that ours cannot express is lost on the way back, and shows here.
    if any(theirs.get(k, v) != v for k, v in target.config.items() if k not in free):
        return None
    return config, target.body()


UNKNOWN_OPTIONS = ("is_decoder", "add_cross_attention", "talking_head")
"""Options of transformers' classes that ours do not have, all off by default."""


def target_of(
    config: EncoderConfig, *, head: str = "tokens", pad_token_id: int = 0
) -> Target | None:
    """Return the target of `config`'s architecture with the head `tokens` or `replaced`.

    None if transformers has no class for it: a plug-in.
    """
    name = config.architecture
    if name in ARCHITECTURES and type(config) is ARCHITECTURES.config_class(name):
        return built_in_target(config, head=head, pad_token_id=pad_token_id)
    return None


def built_in_target(config: EncoderConfig, *, head: str, pad_token_id: int) -> Target:
    """Return the target of a built-in architecture."""
    if isinstance(config, DebertaConfig):
        return _deberta(config, head, pad_token_id)
    if isinstance(config, RobertaConfig):
        if head == "replaced":  # the network is BERT's; Electra's classes have the head
            return _bert(config, "electra", head, pad_token_id)
        return _roberta(config, pad_token_id)
    if isinstance(config, RoformerConfig):
        return _roformer(config, head, pad_token_id)
    assert isinstance(config, BertConfig)
    factorised = config.embedding_size != config.hidden_size
    base = "electra" if factorised or head == "replaced" else "bert"
    return _bert(config, base, head, pad_token_id)


BERT_HEAD = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
             "cls.predictions.bias")  # fmt: skip
TOKEN_HEADS = {
    "bert": BERT_HEAD,
    "deberta": BERT_HEAD,
    "electra": (
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias",
    ),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "roformer": BERT_HEAD,
}  # fmt: skip
"""Transform, norm and bias of the masked-language-model head in transformers' classes."""


DETECTOR = frozenset(
    f"detector.{part}.{kind}" for part in ("transform", "score") for kind in ("weight", "bias")
)
"""Our head for replaced tokens, which only transformers' ELECTRA has."""


def _token_head(config: EncoderConfig, base: str) -> dict[str, Rule]:
    transform, norm, bias = TOKEN_HEADS[base]
    modules = {"predictor.transform": transform, "predictor.norm": norm}
    return _affine(modules) | {"predictor.bias": token_rows(config, bias)}


def _bert(config: BertConfig, base: str, head: str, pad_token_id: int) -> Target:
    modules, rules = _body(config, base)
    rules |= _tables(base) | _fused_attention(config, base)
    if head == "replaced":
        modules["detector.transform"] = "discriminator_predictions.dense"
        modules["detector.score"] = "discriminator_predictions.dense_prediction"
        class_name = "ElectraForPreTraining"
    else:
        rules |= _token_head(config, base)
        class_name = "ElectraForMaskedLM" if base == "electra" else "BertForMaskedLM"
    shared = _shared(config, pad_token_id)
    if base == "electra":
        shared["embedding_size"] = config.embedding_size
    return Target(base, class_name, shared, rules | _affine(modules))


def _roberta(config: RobertaConfig, pad_token_id: int) -> Target:
    base, skipped = "roberta", pad_token_id + 1
    modules, rules = _body(config, base)
    rules |= _tables(base) | _fused_attention(config, base) | _token_head(config, base)
    # transformers counts positions from after the padding token's id.
    rules["embeddings.positions.weight"] = Rule(
        (f"{base}.embeddings.position_embeddings.weight",),
        pack=lambda table: (torch.cat([table.new_zeros(skipped, table.shape[1]), table]),),
        unpack=lambda table: table[skipped:],
    )
    shared = _shared(config, pad_token_id)
    shared["max_position_embeddings"] += skipped
    return Target(base, "RobertaForMaskedLM", shared, rules | _affine(modules))


def _deberta(config: DebertaConfig, head: str, pad_token_id: int) -> Target:
    base = "deberta"
    modules, rules = _body(config, base)
    rules["relative_positions.weight"] = Rule((f"{base}.encoder.rel_embeddings.weight",))
    if modules.pop("embeddings.project", None):  # without a bias, and of another name
        rules["embeddings.project.weight"] = Rule((f"{base}.embeddings.embed_proj.weight",))
    left_behind, class_name = DETECTOR, "DebertaModel"
    if head != "replaced":
        left_behind, class_name = frozenset(), "DebertaForMaskedLM"
        rules |= _token_head(config, base)
    heads = config.num_attention_heads

    def interleave(weight: Tensor) -> tuple[Tensor]:  # [3, H, d] → [H, 3, d] rows
        return (weight.view(3, heads, -1, weight.shape[1]).transpose(0, 1).flatten(0, 2),)

    def part(weight: Tensor) -> Tensor:
        return weight.view(heads, 3, -1, weight.shape[1]).transpose(0, 1).flatten(0, 2)

    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.attention", f"{base}.encoder.layer.{i}.attention.self"
        rules[f"{ours}.qkv.weight"] = Rule((f"{theirs}.in_proj.weight",), interleave, part)
        rules[f"{ours}.q_bias"] = Rule((f"{theirs}.q_bias",))
        rules[f"{ours}.v_bias"] = Rule((f"{theirs}.v_bias",))
        rules[f"{ours}.position_key.weight"] = Rule((f"{theirs}.pos_proj.weight",))
        modules[f"{ours}.position_query"] = f"{theirs}.pos_q_proj"
    shared = _shared(config, pad_token_id) | {
        "embedding_size": config.embedding_size,
        "relative_attention": True,
        "max_relative_positions": config.max_relative_positions,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
    }
    return Target(base, class_name, shared, rules | _affine(modules), left_behind)


def _roformer(config: RoformerConfig, head: str, pad_token_id: int) -> Target:
    base, num_heads = "roformer", config.num_attention_heads
    modules, rules = _body(config, base)
    left_behind, class_name = DETECTOR, "RoFormerModel"
    if head != "replaced":
        left_behind, class_name = frozenset(), "RoFormerForMaskedLM"
        rules |= _token_head(config, base)
    segments = "embeddings.segments.weight"
    rules[segments] = _tables(base)[segments]

    def to_neighbours(rows: Tensor) -> Tensor:  # pairs (i, i + d/2) of a head → (2i, 2i + 1)
        heads = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
        return heads.transpose(1, 2).flatten(0, 2)

    def to_halves(rows: Tensor) -> Tensor:
        heads = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
        return heads.transpose(1, 2).flatten(0, 2)

    def pack(tensor: Tensor) -> tuple[Tensor, ...]:
        query, key, value = tensor.chunk(3)
        return to_neighbours(query), to_neighbours(key), value

    def unpack(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([to_halves(query), to_halves(key), value])

    rules |= {
        name: replace(rule, pack=pack, unpack=unpack)
        for name, rule in _fused_attention(config, base).items()
    }

    def sinusoids() -> Tensor:
        from smallbench.models.roformer import angles

        angles_Ld = angles(config.max_position_embeddings, config.head_size)
        return torch.cat([angles_Ld.sin(), angles_Ld.cos()], dim=1)

    shared = _shared(config, pad_token_id) | {
        "embedding_size": config.embedding_size,
        "rotary_value": False,
    }
    constants = {f"{base}.encoder.embed_positions.weight": sinusoids}
    return Target(base, class_name, shared, rules | _affine(modules), left_behind, constants)


def _shared(config: EncoderConfig, pad_token_id: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": FINETUNING_DROPOUT,
        "attention_probs_dropout_prob": FINETUNING_DROPOUT,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
    }


def token_rows(config: EncoderConfig, theirs: str) -> Rule:
    """Convert a tensor with a row for each token; ours is padded to `vocab_size_multiple`."""

    def pad(tensor: Tensor) -> Tensor:
        missing = config.num_embedding_rows - tensor.shape[0]
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])

    return Rule((theirs,), lambda tensor: (tensor[: config.vocab_size],), pad)


def _tables(base: str) -> dict[str, Rule]:
    return {
        f"embeddings.{ours}.weight": Rule((f"{base}.embeddings.{theirs}_embeddings.weight",))
        for ours, theirs in (("positions", "position"), ("segments", "token_type"))
    }


def _body(config: EncoderConfig, base: str) -> tuple[dict[str, str], dict[str, Rule]]:
    """Return modules and rules that the targets share: token table, norms and linear layers."""
    modules = {"embeddings.norm": f"{base}.embeddings.LayerNorm"}
    if config.embedding_size != config.hidden_size:
        modules["embeddings.project"] = f"{base}.embeddings_project"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}", f"{base}.encoder.layer.{i}"
        modules |= {
            f"{ours}.attention.out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.up": f"{theirs}.intermediate.dense",
            f"{ours}.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    table = token_rows(config, f"{base}.embeddings.word_embeddings.weight")
    return modules, {"embeddings.tokens.weight": table}


def _fused_attention(config: EncoderConfig, base: str) -> dict[str, Rule]:
    rules = {}
    for i in range(config.num_hidden_layers):
        theirs = f"{base}.encoder.layer.{i}.attention.self"
        for kind in ("weight", "bias"):
            rules[f"layers.{i}.attention.qkv.{kind}"] = Rule(
                tuple(f"{theirs}.{name}.{kind}" for name in ("query", "key", "value")),
                pack=lambda tensor: tensor.chunk(3),
                unpack=lambda *parts: torch.cat(parts),
            )
    return rules


def _affine(modules: Mapping[str, str]) -> dict[str, Rule]:
    return {
        f"{ours}.{kind}": Rule((f"{theirs}.{kind}",))
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
