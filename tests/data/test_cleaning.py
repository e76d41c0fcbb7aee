from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallbench.data.cleaning import clean, is_held_out, text_hash


def test_controls_go_and_are_counted():
    result = clean("a\x00b\x07 c\x9fd\ufeff".encode())
    assert result.text == "ab cd"
    assert result.control_characters == 4


def test_undecodable_bytes_are_replaced_and_counted():
    result = clean(b"caf\xe9 au lait \xef\xbf\xbd")  # the last is a real U+FFFD
    assert result.text == "caf\ufffd au lait \ufffd"
    assert result.decode_errors == 1


def test_text_becomes_nfc_even_across_a_removed_control():
    assert clean("e\x00\u0301".encode()).text == "é"


def test_one_paragraph_a_line():
    assert clean("\r\n a\tb  \r\n\r\n\u00a0\n c\u3000d \n".encode()).text == "a b\nc d"


@given(st.binary(max_size=200))
def test_cleaning_a_clean_text_changes_nothing(raw: bytes):
    text = clean(raw).text
    assert clean(text.encode()) == (text, 0, 0)


@given(st.text(max_size=200))
def test_valid_utf8_has_no_decoding_error(text: str):
    assert clean(text.encode("utf-8", "ignore")).decode_errors == 0


def test_held_out_share_is_the_fraction():
    hashes = [text_hash(str(i)) for i in range(20_000)]
    held_out = sum(is_held_out(h, 0.1) for h in hashes)
    assert abs(held_out - 2000) < 200
    assert not any(is_held_out(h, 0.0) for h in [*hashes, 2**64 - 1])
