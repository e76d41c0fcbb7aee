"""Is a tokenizer that transformers loads the one that a corpus was prepared with?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smallbench.data.tokenizer import Tokenizer

HELD_OUT_NAME = "held_out.json"
"""Beside a corpus's tokenizer: a few held-out texts, for the export to compare ids on."""
NUM_HELD_OUT = 20

AWKWARD_TEXTS = (
    "The State of the ART; state-of-the-art, don't, 3.14, e.g. A.B.C.",
    "Café NAÏVE Zürich İstanbul ıİ ΣΊΣΥΦΟΣ ß ẞ ﬁ Å Å é e\u0301 ñ n\u0303",
    "東京は日本の首都。中华人民共和国 대한민국 한글 ภาษาไทย हिन्दी العربية עברית",
    "🙂 👩‍👩‍👧 🇩🇪 ✊🏽 ☃️ ½ № ™ “quoted” — … \u2028 end",
    "tab\tnewline\nreturn\rnul\x00bell\x07escape\x1b\x85\xa0\u200b\u200d\u3000\ufeffend",
    "  leading, double  and trailing spaces  ",
    " one leading space",
    "\n\nlines\n\n\nand lines\n",
    "▁lower one eighth block ▁▁ Ġ and Ċ are byte-level letters",
    "##ing ## # @user #tag http://example.org/a_b?c=d&e=%20 a@b.c C:\\dir snake_case camelCase",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "unbelievable" * 8,
    "unbelievable" * 60,
    "a" * 300 + " " + "é" * 150 + " " + "東" * 120,
    "0123456789 1,000,000.00 $5 50% 2²³ ¼ Ⅷ ١٢٣",
    "!?.,;:()[]{}<>/\\|@#$%^&*~`'\"_-+=",
    "\U0001d54f\U0001d550 \U00020000 \ue000 \u0378",
    "x",
    "",
)
"""What normalizers, pre-tokenizers and models are known to treat differently."""


def different_ids(tokenizer: Tokenizer, exported: Any, texts: Iterable[str]) -> str | None:
    """Describe the first text to which `exported`, of transformers, gives other ids; else None.

    Expected are the ids of `tokenizer` between [CLS] and [SEP]. A text that spells a special token
    is not compared: transformers reads it as one, and the corpus as text.
    """
    for text in texts:
        if any(token in text for token in tokenizer.special_tokens):
            continue
        [content] = tokenizer.encode_batch([text])
        expected = [tokenizer.cls_id, *content.tolist(), tokenizer.sep_id]
        actual = exported(text, truncation=False, padding=False, verbose=False)["input_ids"]
        if actual != expected:
            return (
                f"{type(exported).__name__} gives {_short(actual)} for {text[:40]!r}, the corpus "
                f"has {_short(expected)}"
            )
    return None


def _short(ids: list[int]) -> str:
    return f"{ids[:8]}{'…' if len(ids) > 8 else ''} ({len(ids)} ids)"
