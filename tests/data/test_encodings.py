"""Text in other encodings is read as it was written, or refused with the share of odd bytes."""

from __future__ import annotations

import codecs
import json
import random
from pathlib import Path

import pytest

from smallbench.data.cleaning import clean
from smallbench.data.config import ReadOptions
from smallbench.data.corpus import open_corpus
from smallbench.errors import ConfigError, DataError

SENTENCES = {
    "french": "Le théâtre de la ville a été rénové à grands frais; où êtes-vous allés cet été?",
    "german": "Die Straße führt über die Brücke; größere Häuser stehen am schönen Ufer für Bürger.",
    "spanish": "El niño pequeño comió una manzana mañana; ¿cómo está usted, señor? La canción.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy. Na náměstí se sešlo množství lidí u řeky.",
    "polish": "Zażółć gęślą jaźń. Książka leży na stole, a dziewczyna pisze list do żony i męża.",
    "russian": "Съешь ещё этих мягких французских булок, да выпей чаю. Река текла мимо города.",
    "greek": "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Ο ποταμός περνά.",
    "turkish": "Pijamalı hasta yağız şoföre çabucak güvendi. Irmak şehrin içinden geçiyor.",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה. הנהר עובר דרך העיר והאנשים מסתכלים.",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน จงฝ่าฟันพัฒนาวิชาการ",
    "chinese": "北京是中华人民共和国的首都，也是全国的政治和文化中心。河流穿过城市，人们站在桥上。",
    "taiwanese": "臺北是中華民國的首都，也是政治和文化中心。河流穿過城市，人們站在橋上看風景。",
    "japanese": "東京は日本の首都です。川は町の中を流れていて、人々は橋の上から景色を見ています。",
    "korean": "서울은 대한민국의 수도이다. 강은 도시를 가로질러 흐르고 사람들은 풍경을 본다.",
}
CASES = [
    ("french", "latin-1"), ("french", "cp1252"), ("german", "cp1252"), ("spanish", "cp1252"),
    ("german", "mac_roman"), ("czech", "cp1250"), ("czech", "iso8859-2"), ("polish", "cp1250"),
    ("polish", "iso8859-2"), ("russian", "cp1251"), ("russian", "koi8-r"), ("russian", "cp866"),
    ("greek", "cp1253"), ("turkish", "cp1254"), ("hebrew", "cp1255"), ("thai", "cp874"),
    ("chinese", "gb18030"), ("taiwanese", "big5"), ("japanese", "cp932"), ("japanese", "euc-jp"),
    ("japanese", "iso2022-jp"), ("korean", "cp949"),
    *[(language, bom) for language in ("french", "japanese")
      for bom in ("utf-8-sig", "utf-16", "utf-16-be-bom", "utf-32", "utf-32-be-bom")],
]  # fmt: skip


def encoded(text: str, encoding: str) -> bytes:
    if encoding.endswith("-bom"):
        encoding = encoding.removesuffix("-bom")
        mark = codecs.BOM_UTF16_BE if "16" in encoding else codecs.BOM_UTF32_BE
        return mark + text.encode(encoding)
    return text.encode(encoding)


def documents_in(language: str, count: int = 12) -> list[str]:
    source = random.Random(language)
    words = SENTENCES[language].split()
    return [
        f"{SENTENCES[language]}\n{' '.join(source.sample(words, k=len(words)))}"
        for _ in range(count)
    ]


def read(path: Path, **options) -> tuple[list[str], list[str], list[str]]:
    corpus = open_corpus(str(path), ReadOptions(**options))
    texts = [clean(document).text for document in corpus.documents()]
    return texts, corpus.skips.named, corpus.skips.notes


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_every_encoding_gives_the_documents_that_were_written(
    tmp_path: Path, language: str, encoding: str, line_end: str
):
    documents = documents_in(language)
    text = "\n\n".join(documents).replace("\n", line_end)
    path = tmp_path / "a.txt"
    path.write_bytes(encoded(text, encoding))
    texts, skipped, notes = read(path)
    assert texts == documents, notes
    assert skipped == []
    assert bool(notes) == (not encoding.startswith("utf-")), "a guess is told, a mark is no guess"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_rows_of_json_lines_and_csv_are_decoded_like_text(tmp_path: Path, encoding: str):
    documents = documents_in("french")
    rows = "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents)
    (tmp_path / "a.jsonl").write_bytes(encoded(rows, encoding))
    table = "id,text\n" + "".join(f'1,"{document}"\n' for document in documents)
    (tmp_path / "a.csv").write_bytes(encoded(table, encoding))
    (tmp_path / "wiki_00").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for name in ("a.jsonl", "a.csv", "wiki_00"):
        assert read(tmp_path / name)[:2] == (documents, [])


def test_encodings_may_be_mixed_in_a_folder_and_in_a_file(tmp_path: Path):
    parts = {"french": "utf-8", "czech": "cp1250", "russian": "koi8-r"}
    for language, encoding in parts.items():
        text = "\n\n".join(documents_in(language))
        (tmp_path / f"{language}.txt").write_bytes(text.encode(encoding))
    texts, _, notes = read(tmp_path)
    assert texts == [d for language in sorted(parts) for d in documents_in(language)]
    assert [note.split(":")[0] for note in notes] == ["czech.txt", "russian.txt"]
    halves = ["\n\n".join(documents_in(name)) for name in ("russian", "french")]
    path = tmp_path / "both.txt"
    path.write_bytes(halves[0].encode() + b"\n\n" + halves[1].encode("cp1252"))
    assert read(path)[0] == documents_in("russian") + documents_in("french")


def test_a_few_odd_bytes_in_utf_8_are_damage_and_counted(tmp_path: Path):
    text = "\n\n".join(documents_in("russian")).encode()
    (tmp_path / "a.txt").write_bytes(text + b"\n\nword \xff word")
    corpus = open_corpus(str(tmp_path / "a.txt"))
    assert sum(clean(document).decode_errors for document in corpus.documents()) == 1
    assert corpus.skips.notes == []


def test_a_late_foreign_letter_is_found_at_any_position(tmp_path: Path, monkeypatch):
    from smallbench.data import readers

    monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
    lines = ["plain ascii of some length"] * 40 + ["déjà vu à l'école"]
    (tmp_path / "a.txt").write_bytes("\n\n".join(lines).encode("cp1252"))
    assert read(tmp_path / "a.txt")[0] == lines


def test_the_users_encoding_is_used_where_text_is_not_utf_8(tmp_path: Path):
    documents = documents_in("polish")
    path = tmp_path / "a.txt"
    path.write_bytes("\n\n".join(documents).encode("iso8859-13"))
    assert read(path, encoding="iso8859-13")[:2] == (documents, [])
    path.write_bytes("\n\n".join(documents).encode("utf-16-le"))
    assert read(path, encoding="utf-16-le")[:2] == (documents, [])
    path.write_bytes("\n\n".join(documents).encode())
    assert read(path, encoding="cp1252")[0] == documents, "UTF-8 stays UTF-8"


@pytest.mark.parametrize("given", ["utf-8", "cp1252", "utf-16-be"])
def test_a_byte_order_mark_overrules_the_users_encoding_and_says_so(tmp_path: Path, given: str):
    documents = documents_in("french")
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF16_LE + "\n\n".join(documents).encode("utf-16-le"))
    texts, _, (note,) = read(path, encoding=given)
    assert texts == documents
    assert note.endswith(
        f"read as utf-16-le, as its byte order mark says, not as --encoding={given}"
    )
    assert read(path, encoding="utf-16") == (documents, [], [])
    path.write_bytes(codecs.BOM_UTF8 + "\n\n".join(documents).encode())
    texts, _, notes = read(path, encoding=given)
    assert (texts, bool(notes)) == (documents, given == "utf-16-be")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", ["chinese", "japanese", "russian", "thai", "french"])
def test_utf_16_and_32_are_known_without_a_mark(tmp_path: Path, language: str, encoding: str):
    documents = documents_in(language)
    path = tmp_path / "a.txt"
    path.write_bytes("\n\n".join(documents).encode(encoding))
    for given in (None, "utf-16", "utf-16-be", "utf-32-le", "cp1252"):
        texts, _, notes = read(path, encoding=given)
        assert texts == documents
        told = f", not as --encoding={given}" if given else ""
        expected = f"a.txt: read as {encoding}{told}; it has no byte order mark"
        assert notes == ([] if given == encoding else [expected])


def test_binary_content_is_refused_with_what_to_type_if_it_is_text_after_all(tmp_path: Path):
    source = random.Random(0)
    content = b"".join(source.randrange(2_000).to_bytes(2, "little") for _ in range(9_000))
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match="give --encoding=utf-16-le or --encoding=utf-16-be"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("นี่".encode("utf-16-le"))
    with pytest.raises(DataError, match="no byte order mark; give --encoding=utf-16-le or"):
        read(tmp_path / "a.txt", encoding="utf-16")


def test_text_of_no_encoding_is_refused_with_the_share(tmp_path: Path):
    noise = random.Random(0).randbytes(20_000).replace(b"\0", b"\1")
    (tmp_path / "noise.txt").write_bytes(noise)
    with pytest.raises(DataError, match=r"noise\.txt: .*\d\d\.\d% of its bytes are not UTF-8"):
        read(tmp_path / "noise.txt")
    (tmp_path / "a.txt").write_text("text")
    texts, skipped, _ = read(tmp_path)
    assert texts == ["text"]
    assert len(skipped) == 1


def test_an_encoding_that_does_not_exist_is_refused():
    from smallbench.data.config import PrepareConfig

    with pytest.raises(ConfigError, match="encoding='latin9x' is unknown"):
        PrepareConfig(corpus="x", encoding="latin9x")
