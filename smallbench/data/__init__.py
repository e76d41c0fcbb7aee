"""Raw text → clean documents → tokenizer → token shards → shuffled rows.

Read in this order: `streams`, `encodings` and `readers`, which `corpus` (and `installed_docs`) puts
together; `cleaning`, `tokenizer` (and `backends`, `word_cache`), `packing` and `source`, which runs
them in workers; `shards`; `prepare`, which drives them all; `shares` (several machines), `transfer`
(storages), and `loader`, which training draws from.
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
