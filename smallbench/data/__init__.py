"""Raw text → clean documents → tokenizer → token shards → shuffled rows.

Read in this order: `corpus` (and `installed_docs`), `cleaning`, `tokenizer` (and `word_cache`),
`packing`, `shards`, `prepare`, which drives them all, and `loader`, which training draws from.
"""
