"""Untrusted text: allowed characters, quoting in reports, and names that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

MARKUP = re.compile(r"<[A-Za-z/!?]|&#?\w+;|javascript:|\]\(", re.IGNORECASE)
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories of invisible characters that change how text looks or behaves."""
BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00013441\U00013442\U0001d159"
    "\u2065\ufff0-\ufff8\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
"""Invisible characters of other categories: fillers of Hangul, Braille's empty cell, blanks of
hieroglyphs and of music; and what Unicode reserves for invisible characters."""
JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, need them
SAME_SHAPE = str.maketrans("1i0", "llo")
"""Characters that look alike in one case or the other: I, l, 1 and O, 0."""
BIGRAMS = (("rn", "m"), ("vv", "w"), ("cl", "d"))
"""Pairs of letters that look like one letter; the first is in Unicode's confusables.txt."""


def texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a JSON value or of an entry, with its place: `authors[0]`."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from texts(member, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, member in enumerate(value):
            yield from texts(member, f"{place}[{number}]")
    elif hasattr(value, "__dataclass_fields__"):
        yield from texts(vars(value), place)


def is_invisible(character: str) -> bool:
    """Return whether a character is invisible but changes a text, or is not a character at all."""
    if BLANK.match(character):
        return True
    if ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:
        return True  # noncharacters, which XML does not allow
    return unicodedata.category(character) in INVISIBLE and character not in JOINERS


def is_blank(text: str) -> bool:
    """Return whether a text has spaces, marks and joiners only, which show nothing."""
    return all(unicodedata.category(c)[0] in "ZM" or c in JOINERS for c in text)


def show(value: Any) -> str:
    """Return untrusted text for a report: one short line without terminal escapes."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join("�" if is_invisible(c) else c for c in text)
    return text if len(text) <= 300 else f"{text[:300]}…"


@lru_cache(maxsize=4096)
def skeleton(text: str) -> str:
    """Return a key that is equal for names that look alike (Unicode TR39, §4).

    Case, spaces, combining marks, and symbols that resemble no letter or digit are ignored. A name
    of such symbols alone is its own key.
    """
    from confusable_homoglyphs import confusables

    letters: list[str] = []
    symbols: list[str] = []
    for character in unicodedata.normalize("NFKD", text):
        category = unicodedata.category(character)
        if category[0] in "MZ" or category == "Cf":
            continue
        found = confusables.is_confusable(character, greedy=True, preferred_aliases=[])
        likes = [like["c"] for entry in found or () for like in entry["homoglyphs"]]
        # One letter for all that look alike: the lowest ASCII one, if there is one.
        plain = sorted(c for c in (character, *likes) if c.isascii() and c.isalnum())
        is_letter = plain or category[0] in "LN"
        (letters if is_letter else symbols).append((plain or [character])[0].lower())
    key = "".join(letters or symbols).translate(SAME_SHAPE)
    for pair, letter in BIGRAMS:
        key = key.replace(pair, letter)
    return key
