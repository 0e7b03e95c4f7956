"""The suggested encoding: texts of many languages, and what it costs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.reading import refused
from tinyllm.data.records.reader import read_records
from tinyllm.data.sources import encodings

TEXTS = {
    "zh": "今天我们学习如何写一个简短的故事。请列出三个重要的问题，并解释你的答案。",
    "zh-tw": "今天我們學習如何寫一個簡短的故事。請列出三個重要的問題，並解釋你的答案。",
    "ja": "こんにちは世界。元気ですか。今日は短い物語の書き方を勉強します。",
    "ko": "오늘 우리는 짧은 이야기를 쓰는 방법을 배웁니다. 세 가지 질문에 대답하세요.",
    "ru": "Привет, мир. Как дела? Сегодня мы учимся писать короткие рассказы.",
    "uk": "Привіт, світе. Сьогодні ми вчимося писати короткі оповідання її друзям.",
    "el": "Σήμερα μαθαίνουμε πώς να γράφουμε μια μικρή ιστορία για τον ήλιο.",
    "he": "היום אנחנו לומדים איך לכתוב סיפור קצר על הילדים שהלכו לבית הספר.",
    "ar": "اليوم نتعلم كيف نكتب قصة قصيرة عن الولد الذي ذهب إلى المدرسة مع أخته.",
    "th": "วันนี้เราเรียนรู้วิธีเขียนเรื่องสั้นเกี่ยวกับเด็กที่ไปโรงเรียนกับน้องสาว",
    "de": "Heute üben wir, eine kurze Geschichte über die große Stadt schön zu erzählen.",
    "fr": "Aujourd'hui, nous apprenons à écrire une très brève histoire où l'été a été gâché, ça déçoit.",
    "es": "¿Qué día es mañana? Aprendemos a escribir una historia más corta en español.",
    "pl": "Dziś uczymy się pisać krótkie opowiadania o żółtej łące i źrebięciu.",
    "cs": "Dnes se učíme psát krátké příběhy o žluťoučkém koni a jeho přátelích.",
    "tr": "Bugün kısa bir öykü yazmayı öğreniyoruz; çocuk okula gitti, şarkı söyledi.",
}
CASES = {
    "gb18030": "zh", "big5": "zh-tw", "shift_jis": "ja", "euc-jp": "ja", "euc-kr": "ko", "cp1251": "ru", "koi8-r": "ru", "cp866": "ru",
    "iso8859-5": "ru", "koi8-u": "uk", "cp1253": "el", "cp1255": "he", "cp1256": "ar", "cp874": "th", "latin-1": "de", "cp1252": "es",
    "cp1250": "pl", "iso8859-2": "pl", "cp1254": "tr", "utf-16": "zh", "utf-16-le": "zh", "utf-16-be": "ru", "utf-32": "ja",
}  # fmt: skip


@pytest.mark.parametrize("layout", ["txt", "jsonl"])
@pytest.mark.parametrize(("encoding", "language"), CASES.items(), ids=CASES)
def test_the_suggested_encoding_reads_the_text(tmp_path: Path, layout: str, encoding: str, language: str) -> None:
    path, text = tmp_path / f"x.{layout}", TEXTS[language]
    content = text if layout == "txt" else json.dumps({"text": text}, ensure_ascii=False)
    path.write_bytes((content + "\n").encode(encoding))
    fix = refused(path).fix
    name = fix.partition("data.encoding=")[2].partition(",")[0]
    (document,) = read_records([path], "documents", encoding=name)
    assert document.text == text


@pytest.mark.parametrize("language", ["fr", "cs"])
def test_languages_of_latin_letters_are_told_apart(language: str) -> None:
    encoding = {"fr": "latin-1", "cs": "cp1250"}[language]
    assert encodings.guess(TEXTS[language].encode(encoding)) == encoding


def test_very_little_text_is_enough_for_chinese() -> None:
    row = '{"messages": [{"role": "user", "content": "你好世界"}, {"role": "assistant", "content": "很高兴"}]}\n'
    assert encodings.guess(row.encode("gb18030")) == "gb18030"


def test_an_encoding_is_guessed_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "x.jsonl", []
    path.write_bytes(
        (json.dumps({"text": TEXTS["zh"]}, ensure_ascii=False) + "\n").encode("gb18030") * 4000 + b'{"text": "a"}\n'
    )
    monkeypatch.setattr(encodings, "_score", lambda *a, real=encodings._score: calls.append(a) or real(*a))
    started = time.process_time()
    reader = read_records([path], "documents", on_bad_line="skip")
    assert [d.text for d in reader] == ["a"]
    assert reader.report.dropped["not UTF-8"].count == 4000
    assert len(calls) <= len(encodings._CANDIDATES)
    assert time.process_time() - started < 20


def test_other_names_and_doubts(tmp_path: Path) -> None:
    names = {"GBK": "gb18030", "Windows-1251": "cp1251", "sjis": "shift_jis", "TIS-620": "cp874", "utf-8-sig": "utf-8"}
    assert {name: encodings.canonical(name) for name in names} == names
    assert [encodings.canonical(name) for name in ("utf-7", "rot13", "x\0", 3)] == ["utf-7", "rot13", "x\0", 3]
    path = tmp_path / "x.txt"
    path.write_bytes(TEXTS["zh"].encode("gb18030"))
    reader = read_records([path], "documents", encoding="cp1251")
    list(reader)
    assert reader.report.files[0].notes[0] == "read as cp1251, but looks like gb18030"


@pytest.mark.parametrize(
    ("text", "written", "named", "note"),
    [
        (TEXTS["fr"], "utf-8", "cp1252", ", but looks like utf-8"),  # the commonest mistake: no byte is refused
        (TEXTS["zh"], "utf-8", "latin-1", ", but looks like utf-8"),
        ("plain English\n" * 9, "utf-8", "utf-16-le", ", but looks like utf-8"),
        ("plain English\n" * 9, "utf-16-le", "utf-16-be", ", but looks like utf-16-le"),
        (TEXTS["zh"], "utf-16-le", "utf-16-be", ", but looks like utf-16-le"),
        (TEXTS["zh"], "utf-16-le", "utf-16-le", ""),
        ("\ufeff" + TEXTS["fr"], "utf-16-le", "utf-16-le", ""),
        (TEXTS["fr"], "cp1252", "latin-1", ""),
        ("plain English\n" * 9, "utf-8", "cp1252", ""),
    ],
)
def test_a_wrong_encoding_that_refuses_no_byte_is_noted(
    tmp_path: Path, text: str, written: str, named: str, note: str
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode(written))
    reader = read_records([path], "documents", encoding=named)
    list(reader)
    assert reader.report.files[0].notes[0] == f"read as {named}{note}"
