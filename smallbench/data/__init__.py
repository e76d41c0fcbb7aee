"""Raw text → clean documents → tokenizer → token shards → shuffled rows.

Read in this order: `corpus` (and `installed_docs`), `cleaning`, `tokenizer` (and `word_cache`),
`packing`, `shards`, `prepare`, which drives them all, and `loader`, which training draws from.
"""

from smallbench.registry import Registry

TOKENIZERS = Registry(
    "tokenizer",
    {
        "bpe": "smallbench.data.backends:train_byte_level_bpe",
        "wordpiece": "smallbench.data.backends:train_wordpiece",
    },
    group="smallbench.tokenizers",
)
"""Trainers: `train(texts, vocab_size) -> tokenizers.Tokenizer`; `texts` can be read repeatedly."""
