"""Tiny random encoders of transformers' classes with a tokenizer, saved in the usual formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from smallbench.batch import Batch
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.features import EpochBatches
from smallbench.glue.finetune import tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.task_data import TaskData
from smallbench.glue.tasks import Task
from smallbench.train.schedule import linear_decay

QUICK = FinetuneConfig(epochs=2, max_train_examples=48, max_length=32, precision="fp32")
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *(prefix + chr(c) for c in range(97, 123) for prefix in ("", "##")), *".,?'0123456789-",
]  # fmt: skip

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
FACTORISED = SIZES | {"embedding_size": 16}
DISENTANGLED = SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GENERATES = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 0}


CLASSES = {
    "BertForMaskedLM": SIZES,
    "RobertaForMaskedLM": SIZES,
    "CamembertForMaskedLM": SIZES,
    "XLMRobertaForMaskedLM": SIZES,
    "MPNetForMaskedLM": SIZES,
    "AlbertForMaskedLM": FACTORISED | {"num_hidden_groups": 2},
    "DistilBertForMaskedLM": {
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 130,
    },
    "ElectraForPreTraining": FACTORISED,
    "DebertaForMaskedLM": DISENTANGLED,
    "DebertaV2ForMaskedLM": DISENTANGLED,
    "ModernBertForMaskedLM": SIZES
    | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "MobileBertForMaskedLM": FACTORISED | {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "SqueezeBertForMaskedLM": SIZES | {"embedding_size": 32},
    "FunnelForMaskedLM": {
        "d_model": 32, "block_sizes": [1, 1], "n_head": 2, "d_head": 16, "d_inner": 64,
    },
    "XLNetLMHeadModel": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "ConvBertForMaskedLM": FACTORISED | {"head_ratio": 1, "conv_kernel_size": 3},
    "RoFormerForMaskedLM": FACTORISED,
    "NystromformerForMaskedLM": SIZES | {"num_landmarks": 8, "segment_means_seq_len": 8},
    "LongformerForMaskedLM": SIZES | {"attention_window": [8, 8]},
    "BigBirdForMaskedLM": SIZES | {"attention_type": "original_full"},
    "RemBertForMaskedLM": SIZES | {"input_embedding_size": 16, "output_embedding_size": 32},
    "MegatronBertForMaskedLM": SIZES,
    "T5ForConditionalGeneration": GENERATES
    | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "BartForConditionalGeneration": GENERATES | {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 130,
    },
    "LlamaForCausalLM": SIZES | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "GPT2LMHeadModel": {
        "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 130, "bos_token_id": 2,
        "eos_token_id": 3,
    },
}  # fmt: skip
"""Classes as pretraining saves them; RoBERTa's positions begin behind the padding token."""


def write_tokenizer(directory: Path) -> None:
    """A WordPiece tokenizer of letters."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab=str(directory / "vocab.txt"))
    tokenizer.save_pretrained(directory)


def build(name: str, directory: Path, **changes):
    """A random model of class `name` in `directory`, as safetensors; its config class by name."""
    model_class = getattr(transformers, name)
    values = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, **CLASSES[name]}
    torch.manual_seed(0)
    config = model_class.config_class(**(values | changes))
    write_tokenizer(directory)
    model_class(config).save_pretrained(directory)
    return directory


def state_of(directory: Path) -> dict:
    return load_file(directory / "model.safetensors")


def as_safetensors(directory: Path) -> None:
    """Save as transformers does."""


def as_bin(directory: Path) -> None:
    torch.save(state_of(directory), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def as_shards(directory: Path) -> None:
    """Two files with an index."""
    state = state_of(directory)
    names, mapping = sorted(state), {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in names[i::2]}, directory / file)
        mapping |= dict.fromkeys(names[i::2], file)
    index = {"metadata": {}, "weight_map": mapping}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def wrapped(directory: Path) -> None:
    """Save as DistributedDataParallel around torch.compile, in a training program's state."""
    state = {f"module._orig_mod.{name}": tensor for name, tensor in state_of(directory).items()}
    saved = {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(saved, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def with_a_head(directory: Path) -> None:
    """Save with a head of nine labels under the names of the classification head."""
    config = transformers.AutoConfig.from_pretrained(directory, num_labels=9)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    prefix = f"{model.base_model_prefix}."
    heads = {name: t for name, t in model.state_dict().items() if not name.startswith(prefix)}
    state = state_of(directory)
    state |= {name: torch.full(tensor.shape, 7.0) for name, tensor in heads.items()}
    save_file(state, directory / "model.safetensors")


VARIANTS = {
    "safetensors": as_safetensors,
    "bin": as_bin,
    "shards": as_shards,
    "wrapped": wrapped,
    "a foreign head": with_a_head,
}
"""How the same weights are saved; each is fine-tuned to the same result."""


def drop_a_layer(directory: Path) -> list[str]:
    """Take the weights of the last layer out of the file; their names."""
    state = state_of(directory)
    layers = sorted(n for n in state if ".1." in n and "decoder" not in n)
    assert layers, sorted(state)
    save_file({n: t for n, t in state.items() if n not in layers}, directory / "model.safetensors")
    return layers


PRETRAINED = """class Own(OwnPreTrained):
    def __init__(self, config):
        super().__init__(config)
"""
PLAIN = """class Own(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.post_init = lambda: None
"""
REMOTE_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class OwnConfig(PretrainedConfig):
    model_type = "own-encoder"

    def __init__(self, hidden_size=32, vocab_size=72, **others):
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        super().__init__(**others)


class OwnPreTrained(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "model"


class Own(OwnPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layer = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return torch.tanh(self.layer(self.encoder(input_ids)))


class OwnForSequenceClassification(OwnPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.model = Own(config)
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.model(input_ids, attention_mask)[:, 0]
        return SequenceClassifierOutput(logits=self.classifier(torch.tanh(self.dense(hidden))))
"""
"""As NeoBERT has it: a base model named 'model' without token types, and heads of its own."""


def remote_code(directory: Path, *, is_plain: bool = False) -> Path:
    """A model whose class stands in its own folder, saved as a bare encoder.

    If it `is_plain`, that encoder is a module that knows nothing of transformers.
    """
    write_tokenizer(directory)
    code = REMOTE_CODE
    if is_plain:
        code = code.replace(PRETRAINED, PLAIN)
    (directory / "own.py").write_text(code)
    config = {
        "model_type": "own-encoder",
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModel": "own.Own",
            "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
        },
        "pad_token_id": 0,
        "hidden_size": 32,
        "vocab_size": len(VOCABULARY),
    }
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = {
        "encoder.weight": torch.randn(len(VOCABULARY), 32),
        "layer.weight": torch.randn(32, 32),
        "layer.bias": torch.randn(32),
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def copy(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def add_token(directory: Path, token: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(directory)


def without_dropout(directory: Path) -> None:
    """Two implementations draw their dropout differently; without it they are comparable."""
    config = json.loads((directory / "config.json").read_text())
    dropped = {k: 0.0 for k in config if "drop" in k and isinstance(config[k], float)}
    (directory / "config.json").write_text(json.dumps(config | dropped))


def their_classifier(directory: Path, task: Task, seed: int):
    """Return transformers' own class with a new head."""
    torch.manual_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=len(task.label_names or ("score",)), dtype=torch.float32
    )


def their_predictions(
    encoder: PretrainedEncoder, directory: Path, data: TaskData, config: FinetuneConfig,
    *, learning_rate: float, seed: int,
) -> np.ndarray:  # fmt: skip
    """The logits for dev of a plain loop around transformers' own class, on our batches."""
    model = their_classifier(directory, data.task, seed).train()
    features = tokenize_task(encoder, data, config)
    batches = EpochBatches(
        features["train"], batch_size=config.batch_size, epochs=config.epochs, seed=seed
    )
    groups = [[p for p in model.parameters() if (p.ndim > 1) is decays] for decays in (True, False)]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in zip(groups, (config.weight_decay, 0.0), strict=True)
        ]
    )

    def logits(batch: Batch) -> torch.Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        return model(**inputs).logits

    for step in range(batches.num_steps):
        (batch,), _ = batches.read(step)
        if data.task.is_regression:
            loss = F.mse_loss(logits(batch).squeeze(1), batch.labels.float())
        else:
            loss = F.cross_entropy(logits(batch), batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        warmup = int(config.warmup_fraction * batches.num_steps)
        rate = learning_rate * linear_decay(step, total=batches.num_steps, warmup=warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    predicted: list[np.ndarray] = [np.empty(0)] * len(features["dev"])
    with torch.no_grad():
        for rows in features["dev"].by_length(128):
            for row, values in zip(rows, logits(features["dev"].batch(rows)), strict=True):
                predicted[row] = values.numpy()
    return np.stack(predicted)
