"""Bytes of a text file → blocks of UTF-8, whole lines each.

UTF-8 passes unchanged. UTF-16 and UTF-32 are decoded by their byte order mark. Anything else that
fails strict UTF-8 is detected by chardet and decoded, or refused. Of 26 short texts in as many
encodings chardet 7.7 named all right, charset-normalizer 3.5 only 21 (it took French for cp1250).
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from smallbench.data.skips import Skips, UnreadableError

BOMS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_COMMON_CHARACTERS = " \n\r\u3001\u3002\uff0c"
_SAMPLE_BYTES = 200_000
_MAX_DAMAGE = 0.005  # share of undecodable bytes that is repaired, not refused
_MAX_NULS = 0.01
_MAX_CONTROLS = 0.02
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # but ESC, of ISO-2022
_NON_ASCII = re.compile(rb"[\x80-\xff]")
_SEVEN_BIT = ("utf-7", "hz", "iso2022")  # the bytes of all their text are ASCII
_ESCAPES = re.compile(rb"\x1b[$(]")  # ISO-2022 is 7-bit: it passes for UTF-8
_ASCII_LETTERS = re.compile(rb"[A-Za-z]")
_OTHER_SCRIPTS = re.compile(  # single-byte encodings of Cyrillic, Greek, Hebrew, Arabic and Thai
    r"cp125[1356]|koi8|mac-(cyrillic|greek)|iso8859-([5678]|11)$|kz1048|ptcp154|tis"
    r"|cp(424|720|737|855|86[24-9]|874|1006|1125)"
)
_COMMON = {"cp1252": 0.85, "cp1251": 0.97, "cp1250": 0.97}
_MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)


def detect(sample: bytes) -> tuple[str | None, str]:
    """Name the encoding of `sample`, or None and what it seems to be instead.

    chardet's scores of related encodings differ by less than they mean, so the common one of
    nearly equal candidates is taken; and a text whose letters are mostly ASCII is in Latin script.
    """
    import chardet

    sample = sample[:_SAMPLE_BYTES]
    if len(_CONTROLS.findall(sample)) > _MAX_CONTROLS * len(sample):
        return None, " (control characters)"
    candidates = chardet.detect_all(
        sample,
        ignore_threshold=True,
        compat_names=False,
        no_match_encoding="utf-8",  # it is not, which is why we ask
    )
    num_letters = len(_ASCII_LETTERS.findall(sample))
    is_latin = len(_NON_ASCII.findall(sample)) < num_letters
    scores = {
        str(found["encoding"]): found["confidence"] or 0.0
        for found in reversed(candidates)
        if found["encoding"] not in {None, "ascii", "utf-8"}
        and not (is_latin and _OTHER_SCRIPTS.match(str(found["encoding"])))
    }
    if not scores:
        mime = candidates[0]["mime_type"] if candidates else None
        return None, "" if mime in {None, "text/plain"} else f" ({mime})"
    best = max(scores, key=scores.__getitem__)
    for name, share in _COMMON.items():
        if scores.get(name, 0.0) >= share * scores[best]:
            return name, ""
    return best, ""


def unmarked_encoding(head: bytes) -> str | None:
    """Return the UTF-16 or UTF-32 that `head` is without a mark, or None.

    Only the right one gives spaces, line ends or East Asian punctuation, and no characters that
    nobody assigned.
    """
    for _, name in BOMS:
        try:
            text = codecs.getincrementaldecoder(name)().decode(head)
        except UnicodeError:
            continue
        if sum(map(text.count, _COMMON_CHARACTERS)) > 0.005 * len(text):
            kinds = Counter(map(unicodedata.category, text))
            num_spaces = sum(map(text.count, "\t\n\v\f\r"))
            if kinds["Cn"] + kinds["Co"] + kinds["Cc"] - num_spaces <= 0.001 * len(text):
                return name
    return None


class Utf8:
    """Decodes one file or member to UTF-8, and reports guesses.

    `encoding` is the user's encoding for text that is not UTF-8.
    """

    def __init__(self, name: str, skips: Skips, encoding: str | None = None) -> None:
        self.name, self.skips = name, skips
        self.given = self._encoding = codecs.lookup(encoding).name if encoding else None

    def note(self, text: str) -> None:
        """Remember `text` about this file, which was read."""
        self.skips.note(self.name, text)

    def blocks(
        self, stream: io.BufferedReader, *, block_bytes: int, longest: int
    ) -> Iterator[bytes]:
        """Yield the content in blocks that end with a line, unless a line exceeds `longest`.

        Raises `UnreadableError` for binary content and unknown encodings.
        """
        head = stream.peek(8192)
        whole = self._whole_encoding(head)
        if whole is not None:
            yield from _lines(_decoded(stream, whole, block_bytes), longest)
            return
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        for block in _lines(iter(lambda: stream.read(block_bytes), b""), longest):
            yield self.convert(block)

    def convert(self, block: bytes) -> bytes:
        """Return `block` as UTF-8; a few damaged bytes stay, for the cleaning to count."""
        try:
            block.decode()
        except UnicodeDecodeError:
            return self._convert_foreign(block)
        if b"\x1b" in block and _ESCAPES.search(block):
            encoding, _ = detect(block)
            if encoding and encoding.startswith("iso2022"):
                with suppress(UnicodeError):
                    converted = block.decode(encoding).encode()
                    self._report(encoding, "")
                    return converted
        return block

    def _whole_encoding(self, head: bytes) -> str | None:
        is_given_whole = self.given is not None and (
            self.given.startswith(_SEVEN_BIT) or "a\n".encode(self.given) != b"a\n"
        )
        for bom, name in BOMS:
            if head.startswith(bom):
                if self.given and not name.startswith(self.given):
                    self._note_mark(name)
                return name
        if is_given_whole and head.startswith(codecs.BOM_UTF8):
            self._note_mark("utf-8")
            return None
        start = head[:8192]
        found = unmarked_encoding(start)
        if found and found != self.given:
            given = f", not as --encoding={self.given}" if self.given else ""
            self.note(f"read as {found}{given}; it has no byte order mark")
            return found
        if self.given in {"utf-16", "utf-32"}:
            raise UnreadableError(
                f"no byte order mark; give --encoding={self.given}-le or --encoding={self.given}-be"
            )
        if is_given_whole:
            return self.given
        if start.count(b"\0") > _MAX_NULS * len(start):
            raise UnreadableError(
                f"binary content{detect(start)[1]} where text was expected; if it is UTF-16 "
                "without a byte order mark, give --encoding=utf-16-le or --encoding=utf-16-be"
            )
        return None

    def _note_mark(self, encoding: str) -> None:
        self.note(
            f"read as {encoding}, as its byte order mark says, not as --encoding={self.given}"
        )

    def _convert_foreign(self, block: bytes) -> bytes:
        """Decode the lines that are not UTF-8: all of them, or those among valid ones."""
        lines = block.splitlines(keepends=True)
        # If nearly everything is UTF-8, one or two odd bytes in a line are damage.
        rest, num_sequences = _MULTIBYTE.subn(b"", block)
        num_odd = 2 if num_sequences > 20 * len(_NON_ASCII.findall(rest)) else 0
        foreign = [i for i, line in enumerate(lines) if _is_foreign(line, num_odd)]
        if not foreign:  # UTF-8 with damage
            return self._require_little_damage(block)
        sample = b"".join(lines[i] for i in foreign)
        num_valid = sum(len(line) for line in lines if _NON_ASCII.search(line)) - len(sample)
        if num_valid < len(sample) // 10:
            # Short lines of double-byte encodings may look like UTF-8.
            foreign = [i for i, line in enumerate(lines) if _NON_ASCII.search(line)]
        for encoding in (self._encoding, None if self.given else detect(sample)[0]):
            if encoding is not None:
                try:
                    for i in foreign:
                        lines[i] = lines[i].decode(encoding).encode()
                except UnicodeError:
                    lines = block.splitlines(keepends=True)
                    continue
                share = f", since {_bad_share(block):.2%} of its bytes are not UTF-8"
                self._report(encoding, share)
                return b"".join(lines)
        return self._require_little_damage(block)

    def _report(self, encoding: str, share: str) -> None:
        if encoding == self._encoding:
            return
        self._encoding = encoding
        self.note(f"read as {encoding}{share}; if that is wrong, give --encoding=NAME")

    def _require_little_damage(self, block: bytes) -> bytes:
        share = _bad_share(block)
        if share > _MAX_DAMAGE:
            _, mime = detect(block)
            given = f" nor {self.given}" if self.given else ""
            raise UnreadableError(
                f"{'binary content' + mime if mime else 'unknown encoding'}: {share:.1%} of its "
                f"bytes are not UTF-8{given}; convert it to UTF-8, or give --encoding=NAME"
            )
        return block


def _bad_share(block: bytes) -> float:
    return len(_NON_ASCII.findall(_MULTIBYTE.sub(b"", block))) / max(1, len(block))


def _is_foreign(line: bytes, num_odd: int) -> bool:
    """Return whether a line has another encoding, not damaged UTF-8: most letters are not UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        rest, num_valid = _MULTIBYTE.subn(b"", line)
        return len(_NON_ASCII.findall(rest)) > max(num_valid, num_odd)
    return False


def _decoded(stream: io.BufferedReader, encoding: str, block_bytes: int) -> Iterator[bytes]:
    """Decode as a whole; lone surrogates remain and are counted by the cleaning."""
    decoder = codecs.getincrementaldecoder(encoding)(
        "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "strict"
    )
    is_first = True
    while True:
        block = stream.read(block_bytes)
        try:
            text = decoder.decode(block, not block)
        except UnicodeError:
            raise UnreadableError(f"damaged: not valid {encoding}") from None
        if is_first:
            text, is_first = text.removeprefix("\ufeff"), False
        yield text.encode("utf-8", "surrogatepass")
        if not block:
            return


def _lines(blocks: Iterator[bytes], longest: int) -> Iterator[bytes]:
    """Split blocks again so that each ends with a line, or a character if a line is too long."""
    ready = rest = b""
    for block in blocks:
        if ready:
            yield ready
        rest += block
        # A \r at the very end may be the first half of \r\n.
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
        if not end and len(rest) > longest:
            end = end_of_characters(rest, len(rest))
        ready, rest = rest[:end], rest[end:]
    if ready or rest:
        yield ready + rest


def end_of_characters(text: bytes, limit: int) -> int:
    """Return an end of a character of UTF-8 at most 4 bytes before `limit`."""
    end = limit
    while end > limit - 4 and text[end - 1] & 0xC0 == 0x80:  # not the first byte of a character
        end -= 1
    return end - (text[end - 1] >= 0xC0)
