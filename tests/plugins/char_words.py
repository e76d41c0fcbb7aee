"""A character-aware tokenizer: the most frequent words whole, every other word by its letters."""

from collections import Counter
from collections.abc import Iterable

import tokenizers

from smallbench.data.backends import WORDPIECE_SPECIALS, wordpiece


def char_words(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """WordPiece over letters and whole words: no word is cut into pieces of chance."""
    split = wordpiece([*WORDPIECE_SPECIALS, "a"])
    words: Counter[str] = Counter()
    for text in texts:
        normal = split.normalizer.normalize_str(text)
        words.update(word for word, _ in split.pre_tokenizer.pre_tokenize_str(normal))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[: vocab_size // 4]
    known = [*WORDPIECE_SPECIALS, *alphabet, *(f"##{letter}" for letter in alphabet)]
    frequent = sorted(words, key=lambda word: (-words[word], word))
    known += [word for word in frequent if len(word) > 1][: vocab_size - len(known)]
    return wordpiece(known)
