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
from smallbench.models.config import BertConfig, DebertaConfig, EncoderConfig, RobertaConfig


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
    config: dict[str, Any]
    rules: dict[str, Rule]
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
        """transformers' state dict → what it has of ours, rows of padding filled with zeros."""
        return {
            ours: rule.unpack(*(theirs[name] for name in rule.theirs)).clone()
            for ours, rule in self.rules.items()
            if all(name in theirs for name in rule.theirs)
        }


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
    body = _body(config, model_type, theirs["pad_token_id"])
    free = {"hidden_dropout_prob", "attention_probs_dropout_prob", "tie_word_embeddings"}
    # An option that ours cannot express is lost on the way back, and shows here.
    if any(theirs.get(k, v) != v for k, v in body.config.items() if k not in free):
        return None
    return config, body


UNKNOWN_OPTIONS = ("is_decoder", "add_cross_attention", "talking_head")
"""Options of transformers' classes that ours do not have, all off by default."""


def target_of(
    config: EncoderConfig, *, head: str = "tokens", pad_token_id: int = 0
) -> Target | None:
    """Return the target of `config`'s architecture with the head `tokens` or `replaced`.

    None if transformers has no class for it: a plug-in.
    """
    base = config.architecture
    if base not in ARCHITECTURES or type(config) is not ARCHITECTURES.config_class(base):
        return None
    if isinstance(config, BertConfig):
        factorised = config.embedding_size != config.hidden_size
        other = "roberta" if isinstance(config, RobertaConfig) else "bert"
        base = "electra" if factorised or head == "replaced" else other
    return _with_head(_body(config, base, pad_token_id), config, head)


DETECTOR = frozenset(
    f"detector.{part}.{kind}" for part in ("transform", "score") for kind in ("weight", "bias")
)
"""Our head for replaced tokens, which only transformers' ELECTRA has."""


def _with_head(body: Target, config: EncoderConfig, head: str) -> Target:
    base = body.model_type
    name, (transform, norm, bias), _ = FAMILIES[base]
    if head != "replaced":
        rules = _affine({"predictor.transform": transform, "predictor.norm": norm})
        rules["predictor.bias"] = token_rows(config, bias)
        return replace(body, rules=body.rules | rules, class_name=f"{name}ForMaskedLM")
    if base != "electra":
        return replace(body, left_behind=DETECTOR)
    theirs = "discriminator_predictions.dense"
    rules = _affine({"detector.transform": theirs, "detector.score": f"{theirs}_prediction"})
    return replace(body, rules=body.rules | rules, class_name=f"{name}ForPreTraining")


# ---- transformers' bare models: what all have, then what each has of its own


def _body(config: EncoderConfig, base: str, pad_token_id: int) -> Target:
    name, _, add_own = FAMILIES[base]
    modules = {"embeddings.norm": f"{base}.embeddings.LayerNorm"}
    for ours, theirs in _layers(config, base):
        modules |= {
            f"{ours}.attention.out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.up": f"{theirs}.intermediate.dense",
            f"{ours}.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    table = token_rows(config, f"{base}.embeddings.word_embeddings.weight")
    options = {
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
    rules = _affine(modules) | {"embeddings.tokens.weight": table}
    return add_own(Target(base, f"{name}Model", options, rules), config)


QKV = ("query", "key", "value")


def _segmented(body: Target, config: EncoderConfig) -> Target:
    """Return the body with BERT's segments, attention, and projection of a factorised embedding."""
    base = body.model_type
    rules = {
        "embeddings.segments.weight": Rule((f"{base}.embeddings.token_type_embeddings.weight",))
    }
    if config.embedding_size != config.hidden_size:
        rules |= _affine({"embeddings.project": f"{base}.embeddings_project"})
    for ours, theirs in _layers(config, base):
        for kind in ("weight", "bias"):
            rules[f"{ours}.attention.qkv.{kind}"] = Rule(
                tuple(f"{theirs}.attention.self.{part}.{kind}" for part in QKV),
                pack=lambda tensor: tensor.chunk(3),
                unpack=lambda *parts: torch.cat(parts),
            )
    return replace(body, rules=body.rules | rules)


def _bert(body: Target, config: Any) -> Target:
    body = _segmented(body, config)
    theirs = f"{body.model_type}.embeddings.position_embeddings.weight"
    return replace(body, rules=body.rules | {"embeddings.positions.weight": Rule((theirs,))})


def _electra(body: Target, config: Any) -> Target:
    options = body.config | {"embedding_size": config.embedding_size}
    return replace(_bert(body, config), config=options)


def _roberta(body: Target, config: Any) -> Target:
    # transformers counts positions from after the padding token's id.
    skipped, positions = body.config["pad_token_id"] + 1, "embeddings.positions.weight"
    body = _bert(body, config)
    rule = replace(
        body.rules[positions],
        pack=lambda table: (torch.cat([table.new_zeros(skipped, table.shape[1]), table]),),
        unpack=lambda table: table[skipped:],
    )
    options = {"max_position_embeddings": config.max_position_embeddings + skipped}
    return replace(body, rules=body.rules | {positions: rule}, config=body.config | options)


def _deberta(body: Target, config: Any) -> Target:
    base, heads = body.model_type, config.num_attention_heads
    rules = {"relative_positions.weight": Rule((f"{base}.encoder.rel_embeddings.weight",))}
    if config.embedding_size != config.hidden_size:  # without a bias, and of another name
        rules["embeddings.project.weight"] = Rule((f"{base}.embeddings.embed_proj.weight",))

    def interleave(weight: Tensor) -> tuple[Tensor]:  # [3, H, d] → [H, 3, d] rows
        return (weight.view(3, heads, -1, weight.shape[1]).transpose(0, 1).flatten(0, 2),)

    def part(weight: Tensor) -> Tensor:
        return weight.view(heads, 3, -1, weight.shape[1]).transpose(0, 1).flatten(0, 2)

    for layer, their_layer in _layers(config, base):
        ours, theirs = f"{layer}.attention", f"{their_layer}.attention.self"
        rules[f"{ours}.qkv.weight"] = Rule((f"{theirs}.in_proj.weight",), interleave, part)
        rules[f"{ours}.q_bias"] = Rule((f"{theirs}.q_bias",))
        rules[f"{ours}.v_bias"] = Rule((f"{theirs}.v_bias",))
        rules[f"{ours}.position_key.weight"] = Rule((f"{theirs}.pos_proj.weight",))
        rules |= _affine({f"{ours}.position_query": f"{theirs}.pos_q_proj"})
    options = {
        "embedding_size": config.embedding_size,
        "relative_attention": True,
        "max_relative_positions": config.max_relative_positions,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
    }
    return replace(body, rules=body.rules | rules, config=body.config | options)


def _roformer(body: Target, config: Any) -> Target:
    num_heads = config.num_attention_heads
    body = _segmented(body, config)

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

    def sinusoids() -> Tensor:
        from smallbench.models.roformer import angles

        angles_Ld = angles(config.max_position_embeddings, config.head_size)
        return torch.cat([angles_Ld.sin(), angles_Ld.cos()], dim=1)

    rules = {
        name: replace(rule, pack=pack, unpack=unpack)
        for name, rule in body.rules.items()
        if ".qkv." in name
    }
    options = {"embedding_size": config.embedding_size, "rotary_value": False}
    return replace(
        body,
        rules=body.rules | rules,
        config=body.config | options,
        constants={f"{body.model_type}.encoder.embed_positions.weight": sinusoids},
    )


BERT_HEAD = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
             "cls.predictions.bias")  # fmt: skip
ELECTRA_HEAD = ("generator_predictions.dense", "generator_predictions.LayerNorm",
                "generator_lm_head.bias")  # fmt: skip
FAMILIES: Mapping[str, tuple[str, tuple[str, str, str], Callable[[Target, Any], Target]]] = {
    "bert": ("Bert", BERT_HEAD, _bert),
    "deberta": ("Deberta", BERT_HEAD, _deberta),
    "electra": ("Electra", ELECTRA_HEAD, _electra),
    "roberta": ("Roberta", ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"), _roberta),
    "roformer": ("RoFormer", BERT_HEAD, _roformer),
}
"""`model_type` of transformers → the beginning of its classes' names; transform, norm and bias of
its masked-language-model head; and what adds to a body what it has of its own."""


def token_rows(config: EncoderConfig, theirs: str) -> Rule:
    """Convert a tensor with a row for each token; ours is padded to `vocab_size_multiple`."""

    def pad(tensor: Tensor) -> Tensor:
        missing = config.num_embedding_rows - tensor.shape[0]
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])

    return Rule((theirs,), lambda tensor: (tensor[: config.vocab_size],), pad)


def _layers(config: EncoderConfig, base: str) -> list[tuple[str, str]]:
    """Return our name of each layer, and transformers'."""
    return [(f"layers.{i}", f"{base}.encoder.layer.{i}") for i in range(config.num_hidden_layers)]


def _affine(modules: Mapping[str, str]) -> dict[str, Rule]:
    return {
        f"{ours}.{kind}": Rule((f"{theirs}.{kind}",))
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
