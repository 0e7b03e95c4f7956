"""The report of an invented scorecard: contents of the page, escaping, and omitted sections."""

from __future__ import annotations

import copy
import io
import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tinyllm.html import report

PARENTS = {"pretrain": None, "sft": "pretrain", "sft-lora": "pretrain", "rm": "sft", "dpo": "sft", "ppo": "sft"}
SECTIONS = (
    "lineage",
    "gates",
    "splits",
    "seeds",
    "scorecard",
    "tasks",
    "curves",
    "hacking",
    "samples",
    "costs",
    "configs",
    "reproduce",
)
HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(1)>\x00\x07\x1b[31m\u202egnp.exe\u2066\ud800\ufffe&amp;'</title></style>"


def stage(name: str, i: int) -> dict[str, Any]:
    gate = {
        "name": f"gate of {name}",
        "what": "a figure",
        "value": 1.02 + i,
        "bound": 1.35 + i,
        "rule": "<=",
        "n": 512 + i,
        "counted": "answers",
        "why": "",
        "passed": True,
        "last": {"value": 1.02 + i, "n": 512 + i, "passed": True, "why": ""},
    }
    curve = [[step, 3.0 - 0.1 * step] for step in range(20)]
    return {
        "stage": name,
        "title": name.upper(),
        "parent": PARENTS[name],
        "run": f"runs/{name}/laptop",
        "checkpoint": f"runs/{name}/laptop/checkpoints/ckpt_best",
        "manifest_sha256": f"{i}abcdef0" * 8,
        "seconds": 60.0 + i,
        "peak_memory_mb": 900 + i,
        "parameters": 1_382_272,
        "trainable_parameters": 1_382_272,
        "tokens": 4_096_000,
        "best_step": 100 * (i > 0),
        "last_step": 400,
        "config": f"name: {name}\ntrain:\n  steps: 1000\n",
        "curves": {"loss": {"train": curve, "eval": curve[::5]}},
        "gates": [{**gate, "look_at": f"raise train.steps of {name}"}],
    }


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.03, "high": value + 0.03, "n": 500}


def used(i: int) -> dict[str, Any]:
    part = {"n": {"questions": 1000 + i, "last questions": 990 + i}, "sha256": f"{i}fedcba0" * 8}
    overlap = {"questions": 0, "last questions": 0}
    return {
        "train": {**part, "n": {"questions": 5000, "last questions": 4000}},
        "selection": {**part, "n": {"questions": 300, "last questions": 200}},
        "exam": part,
        "overlap": {"train/exam": overlap, "selection/exam": overlap},
    }


def overoptimized(i: int) -> dict[str, Any]:
    gold = 0.5 + 0.1 * i - 0.02 * i * i
    return {"step": 8 * i, "kl": 0.1 * i * i, "proxy": 0.1 * i, "gold": gold, "entropy": 2 - 0.1 * i}


@pytest.fixture
def card() -> dict[str, Any]:
    asked = [name for name in PARENTS if name != "rm"]
    return {
        "schema_version": 1,
        "preset": "laptop",
        "seed": 0,
        "created": "2026-11-24T23:00:00+0000",
        "command": "tinyllm lifecycle --seeds 2",
        "version": "0.1.0",
        "machine": {"device": "cpu", "threads": 2, "torch": "2.13.0", "python": "3.11.7", "platform": "Linux"},
        "seconds": 612.3,
        "peak_memory_mb": 1210,
        "passed": True,
        "stages": [stage(name, i) for i, name in enumerate(PARENTS)],
        "columns": [
            {"key": "bits_per_byte", "title": "bits per byte", "better": "lower", "digits": 3},
            {"key": "accuracy", "title": "tasks right", "better": "higher", "percent": True},
            {"key": "gold", "title": "gold reward", "better": "higher", "digits": 2},
            {"key": "kl", "title": "KL to the parent", "digits": 2},
        ],
        "scores": {
            name: {
                "bits_per_byte": score(1.02 + 0.01 * i),
                "accuracy": score(0.1 + 0.2 * i),
                "gold": score(-0.5 + 0.3 * i),
            }
            for i, name in enumerate(asked)
        },
        "last": {"sft": {"step": 400, "figures": {"gold": score(0.123)}, "measured": {}}},
        "splits": {name: used(i) for i, name in enumerate(PARENTS)},
        "by_task": {name: {"sort": score(0.2 * i), "copy": score(0.1)} for i, name in enumerate(asked)},
        "prompts": [
            {
                "prompt": "Sort these digits: 5 2 9",
                "expected": "2 5 9",
                "task": "sort",
                "answers": {
                    "pretrain": {"text": "Mia went home and", "gold": -1.0, "finished": False},
                    "sft": {"text": "2 5 9", "gold": 1.0, "finished": True},
                },
            }
        ],
        "hacking": [{"stage": "ppo", "points": [overoptimized(i) for i in range(9)], "onset": 40, "best": 24}],
        "seeds": [
            {
                "seed": s,
                "passed": True,
                "seconds": 600 + s,
                "gates": {"sft/gate of sft": {"value": 2.0 + s, "passed": s == 0}},
            }
            for s in (0, 1)
        ],
    }


class Reader(HTMLParser):
    """Parse a page as a browser would, and check that tags are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


def test_every_section_is_present_and_linked(card: dict[str, Any]) -> None:
    page = report.page(card)
    assert tuple(sections(page)) == SECTIONS
    assert tuple(re.findall(r'href="#(\w+)"', page)) == SECTIONS
    Reader(page)


def test_the_verdict_counts_gates_and_seeds(card: dict[str, Any]) -> None:
    assert report.verdict({**card, "seeds": []}) == "All 6 gates passed in 10 min 12 s on 2 CPU threads."
    assert report.verdict(card).endswith("; 2 of 2 seeds passed.")
    card["stages"][1]["gates"][0]["passed"] = False
    card["machine"] = {"device": "cuda"}
    assert report.verdict({**card, "seeds": []}) == "1 of 6 gates failed in 10 min 12 s on cuda."
    assert report.verdict({"passed": False, "stages": card["stages"][:1]}) == (
        "The only gate passed; the run did not pass."
    )


def test_a_failed_gate_is_named_with_what_to_check(card: dict[str, Any]) -> None:
    good = report.page(card)
    assert "FAILED" not in section(good, "gates")
    assert "raise train.steps" not in section(good, "gates")
    card["stages"][1]["gates"][0]["passed"] = card["passed"] = False
    page = report.page(card)
    assert section(page, "gates").count("✗ FAILED") == 1
    assert section(page, "gates").count("✓ passed") == 5
    assert ">check: raise train.steps of sft<" in section(page, "gates")
    assert "<li><b>sft</b>: gate of sft (2.02, should be ≤\u00a02.35)</li>" in page
    assert "<title>tinyllm lifecycle: failed</title>" in page


def test_the_last_checkpoint_is_shown_below_the_best_one(card: dict[str, Any]) -> None:
    """And counts neither as the best of a column nor where it is the best checkpoint itself."""
    card["last"]["sft"]["figures"]["gold"]["value"] = 9.0
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', section(report.page(card), "scorecard"))
    names = [name for name, _ in rows]
    assert names[:3] == ["pretrain (step 0: nothing improved)", "sft", "<small>last 400</small>"]
    assert len(names) == len(card["scores"]) + 1
    assert "9.00" in rows[2][1]
    assert "★" not in rows[2][1]
    shown = terminal(card)
    assert re.search(r"^  last 400 .* 9\.00", shown, re.MULTILINE)
    assert re.search(r"^pretrain .*\n step 0: *\n nothing *\n improved", shown, re.MULTILINE)


def test_a_gate_shows_what_it_was_measured_on_and_what_the_last_checkpoint_does(card: dict[str, Any]) -> None:
    gate = card["stages"][1]["gates"][0]
    assert "the last checkpoint" not in section(report.page(card), "gates") + terminal(card)
    gate["last"] = {"value": 7.25, "n": 513, "passed": False, "why": ""}
    for shown in (section(report.page(card), "gates"), terminal(card)):
        assert "the last checkpoint fails: 7.25" in shown
        assert "513" in shown
    gate |= {"passed": False, "why": "no question with a different answer", "n": 0}
    gate["last"]["passed"] = True
    for shown in (section(report.page(card), "gates"), terminal(card)):
        assert "no question with a different answer" in " ".join(shown.split())
        assert "the last checkpoint passes: 7.25" in shown


def test_overlaps_are_shown_with_what_was_compared(card: dict[str, Any]) -> None:
    found = section(report.page(card), "splits")
    assert "1,001 questions, 991 last questions<small>1fedcba01fed</small>" in found
    sets = [row["exam"]["n"] for row in card["splits"].values()]
    for n in sets:
        assert found.count(f"0 of {n['questions']:,} questions, 0 of {n['last questions']:,} last questions<") == 2
    total = f"{sum(sum(n.values()) for n in sets):,}"
    assert (
        report.overlap_line(card)
        == f"in common: train and exam 0 of {total} comparisons, selection and exam 0 of {total} comparisons"
    )
    card["splits"]["sft"]["overlap"]["selection/exam"] = {"questions": 3, "last questions": 0}
    row = next(row for row in found.split("<tr>") if "1,001 questions" in row)
    assert row.index("5,000 questions") < row.index("300 questions") < row.index("1,001 questions")
    shown = section(report.page(card), "splits")
    row = next(row for row in shown.split("<tr>") if ">3 of 1,001 questions, 0 of 991 last questions<" in row)
    assert row.index(">0 of 1,001 questions") < row.index(">3 of 1,001 questions")  # train, then selection
    assert (
        report.overlap_line(card)
        == f"in common: train and exam 0 of {total} comparisons, selection and exam 3 of {total} comparisons"
    )
    assert report.overlap_line({}) == ""


def test_an_overlap_of_nothing_is_not_shown_as_zero(card: dict[str, Any]) -> None:
    """An exam that has no unit in common with what trained: 0 records in common would say that there was a comparison."""
    card["splits"]["sft"]["overlap"]["train/exam"] = {}
    assert section(report.page(card), "splits").count(">nothing compared<") == 1
    for row in card["splits"].values():
        row["overlap"]["train/exam"] = {}
        row["overlap"]["selection/exam"] = {"questions": 0}
        row["exam"]["n"] = {"questions": 0}
    assert (
        report.overlap_line(card) == "in common: train and exam nothing compared, selection and exam nothing compared"
    )


def terminal(card: dict[str, Any]) -> str:
    out = io.StringIO()
    console = Console(width=80, file=out)
    for table in report.terminal(card):
        console.print(table)
    return out.getvalue()


def test_the_best_value_of_each_column_is_marked(card: dict[str, Any]) -> None:
    found = re.findall(r'<th scope="row">([\w-]+)[^<]*</th>(.*?)</tr>', section(report.page(card), "scorecard"))
    rows = dict(found)
    assert list(rows) == ["pretrain", "sft", "sft-lora", "dpo", "ppo"]
    assert {name: row.count("★") for name, row in rows.items() if "★" in row} == {"pretrain": 1, "ppo": 2}
    assert rows["pretrain"].index("★") < rows["pretrain"].index("1.020")
    assert "<small>0.990 to 1.050</small>" in rows["pretrain"]
    assert "90 %<small>87 to 93 %</small>" in rows["ppo"]
    assert "KL to the parent" not in section(report.page(card), "scorecard")  # no stage has it
    one = {**card, "scores": {"sft": card["scores"]["sft"]}}
    assert "★</span>" not in report.page(one)  # only one value


def test_samples_show_gold_and_eos(card: dict[str, Any]) -> None:
    found = section(report.page(card), "samples")
    assert 'gold −1.00 · <span class="bad">✗ no EOS</span>' in found
    assert '✓ exact</span> · gold 1.00 · EOS</small></p><p class="text" dir="auto">2 5 9</p>' in found


def test_the_color_of_a_task_follows_its_accuracy(card: dict[str, Any]) -> None:
    card["by_task"]["sft"]["sort"]["value"] = 1.4  # out of range
    row = re.search(r'<th scope="row">sort</th>(.*?)</tr>', section(report.page(card), "tasks"))[1]
    assert re.findall(r"--v:([\d.]+).*?>([^<]+)</td>", row) == [
        ("0.000", "0 %"),
        ("1.000", "140 %"),
        ("0.400", "40 %"),
        ("0.600", "60 %"),
        ("0.800", "80 %"),
    ]


def test_onset_and_best_are_marked_at_their_kl(card: dict[str, Any]) -> None:
    main = svgs(section(report.page(card), "hacking"))[0]
    texts = {t.text: t for t in main.iter("text")}
    lines = {g.find("text").text: float(g.find("line").get("x1")) for g in main.iter("g") if g.find("line") is not None}
    assert {"best: step 24", "onset: step 40", "proxy", "gold"} <= set(texts)
    rings = {round(float(c.get("cx")), 1) for c in main.iter("circle") if c.get("class") == "ring"}
    assert rings == set(lines.values())
    # square-root scale: KL 0.9 of 6.4 is at sqrt(0.9 / 6.4) of the axis
    axis = next(line for line in main.iter("line") if line.get("class") == "axis")
    start, end = float(axis.get("x1")), float(axis.get("x2"))
    assert lines["best: step 24"] == pytest.approx(start + math.sqrt(0.9 / 6.4) * (end - start), abs=0.2)
    assert "repetition" not in section(report.page(card), "hacking")  # no data


def test_overoptimization_without_gold_and_with_a_negative_estimate_of_kl(card: dict[str, Any]) -> None:
    run = card["hacking"][0]
    run["points"][1]["kl"] = -0.01
    main = svgs(section(report.page(card), "hacking"))[0]
    assert main.find(".//path[@class='line']").get("d").count("M") == 1  # no hole
    for point in run["points"]:
        del point["gold"]
    run |= {"best": None, "onset": None}
    found = section(report.page(card), "hacking")
    assert "Gold reward is unknown" in found
    assert "gold" not in {t.text for t in svgs(found)[0].iter("text")}


def test_a_proxy_on_another_scale_gets_its_own_chart(card: dict[str, Any]) -> None:
    for point in card["hacking"][0]["points"]:
        point["proxy"] *= 20
    proxy, gold, _ = svgs(section(report.page(card), "hacking"))
    x = [[line.get("x1") for line in chart.iter("line") if line.get("class") == "mark"] for chart in (proxy, gold)]
    assert x[0] == x[1]  # aligned
    assert "proxy" in proxy[0].text
    assert "gold" in gold[0].text


def test_every_svg_is_well_formed_and_has_a_title(card: dict[str, Any]) -> None:
    found = svgs(report.page(card))
    assert len(found) == 1 + 2 + 6 + 2 + 2  # tree, intervals, curves, hacking, costs
    for svg in found:
        assert svg.get("role") == "img"
        assert svg[0].tag == "title"
        assert len(svg[0].text) > 20


@pytest.mark.parametrize("where", ["answers", "names", "everything"])
def test_hostile_text_is_escaped(card: dict[str, Any], where: str) -> None:
    plain = Reader(report.page(card))
    hostile = copy.deepcopy(card)
    if where == "answers":
        hostile["prompts"][0]["answers"]["sft"]["text"] = HOSTILE
    elif where == "names":
        hostile = _replaced(card, lambda text: {"sft": HOSTILE, "sort": HOSTILE}.get(text, text))
    else:
        kept = {"lower", "higher", "<=", "cpu", "gold", "accuracy", "bits_per_byte", "kl", "train", "eval"}
        hostile = _replaced(card, lambda text: text if text in kept else text + HOSTILE)
    page = report.page(hostile)
    page.encode("utf-8")  # no lone surrogates
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", page)
    assert len(svgs(page)) == len(svgs(report.page(card)))
    read = Reader(page)
    assert set(read.tags) == set(plain.tags)
    assert {name for name, _ in read.attributes} == {name for name, _ in plain.attributes}
    assert any("<script>alert(1)</script>" in text for text in read.texts)  # shown, as text


def _replaced(value: Any, change: Any) -> Any:
    """Apply `change` to every string, in values and in keys that are names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_replaced(v, change) for v in value]
    if isinstance(value, dict):
        names = set(PARENTS) | {"sort", "copy", "sft/gate of sft"}
        return {change(k) if k in names else k: _replaced(v, change) for k, v in value.items()}
    return value


def test_the_page_loads_nothing_and_has_no_scripts(card: dict[str, Any]) -> None:
    card["prompts"][0]["answers"]["sft"]["text"] = "see https://example.com"
    page = report.page(card)
    read = Reader(page)
    assert not set(read.tags) & {"script", "img", "link", "iframe", "object", "form", "base"}
    assert {name for name, _ in read.attributes if name.startswith("on")} == set()
    links = [value for name, value in read.attributes if name in ("href", "src")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "url(" not in page
    assert "@import" not in page
    policy = dict(re.findall(r'http-equiv="([\w-]+)" content="([^"]+)"', page))["Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@pytest.mark.parametrize(
    ("key", "gone"),
    [
        ("scores", {"scorecard"}),
        ("splits", {"splits"}),
        ("columns", {"scorecard"}),
        ("by_task", {"tasks"}),
        ("prompts", {"samples"}),
        ("hacking", {"hacking"}),
        ("seeds", {"seeds"}),
        ("stages", {"lineage", "gates", "curves", "costs", "configs"}),
    ],
)
def test_a_section_without_data_is_omitted(card: dict[str, Any], key: str, gone: set[str]) -> None:
    for empty in ({k: v for k, v in card.items() if k != key}, {**card, key: type(card[key])()}):
        page = report.page(empty)
        assert set(SECTIONS) - set(sections(page)) == gone
        assert not any(f"#{name}" in page for name in gone)


def test_an_empty_scorecard_is_still_a_page() -> None:
    page = report.page({})
    assert sections(page) == []
    assert "0 stages ran; no gates were checked." in page


def test_a_stage_with_the_fewest_keys(card: dict[str, Any]) -> None:
    card["stages"] = [{"stage": "pretrain", "parent": "something else"}]
    assert sections(report.page(card))[0] == "lineage"


def test_many_curves_are_folded(card: dict[str, Any]) -> None:
    assert "<details class" not in report.page(card)
    curve = card["stages"][1]["curves"]["loss"]
    card["stages"][1]["curves"] = {name: curve for name in ("loss", "reward", "length", "entropy")}
    shown, folded = section(report.page(card), "curves").split("<summary>2 more</summary>")
    assert [len(svgs(shown)), len(svgs(folded))] == [7, 2]


def test_the_same_scorecard_gives_the_same_bytes(card: dict[str, Any]) -> None:
    assert report.page(card) == report.page(copy.deepcopy(card))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, 1e308, 10**400])
def test_values_that_are_not_finite_break_no_chart(card: dict[str, Any], bad: Any) -> None:
    for found in card["stages"]:
        found["curves"]["loss"]["train"][3][1] = bad
        found["seconds"] = bad
        found["gates"][0]["value"] = bad
    card["scores"]["sft"]["gold"] = {"value": bad, "low": bad, "high": bad, "n": 0}
    card["by_task"]["sft"]["sort"]["value"] = bad
    card["hacking"][0]["points"][2] |= {"kl": bad, "gold": bad}
    card["seconds"] = bad
    card["seeds"][0]["gates"]["sft/gate of sft"]["value"] = bad
    page = report.page(card)
    assert not re.search(r"\b(nan|inf)\b", page)
    assert len(svgs(page)) == 1 + 2 + 6 + 2 + 1  # no bars for the seconds


@pytest.mark.parametrize("hostile", [False, True])
def test_terminal_fits_eighty_columns(card: dict[str, Any], hostile: bool) -> None:
    card["stages"][1]["gates"][0] |= {"passed": False, "name": "[red]gate[/red] \x1b[2J" + "long " * 30}
    if hostile:
        card["columns"][0]["title"] = "[/bold]" + HOSTILE
    assert len(report.terminal(card)) == 2
    shown = terminal(card)
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "\x1b" not in shown
    assert "[red]gate[/red]" in shown
    assert "FAILED" in shown
    assert shown.count("check: raise train.steps of sft") == shown.count("check:") == 1
    if not hostile:
        shown.replace("─", "-").encode("ascii")  # ASCII only, for terminals without typographic characters
    assert report.terminal({}) == []
