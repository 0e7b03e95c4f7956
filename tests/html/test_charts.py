"""Charts of the report: positions, omitted values, well-formed XML."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from tinyllm.html import charts
from tinyllm.html.charts import Dot, Mark, Series
from tinyllm.html.text import clean, duration, escape, number, short
from tinyllm.html.tree import Node, tree


def line_chart(points: list[Any], **options: Any) -> ElementTree.Element | None:
    made = charts.line_chart([Series("a", points, 2)], title="t", x_label="x", **options)
    return ElementTree.fromstring(made) if made else None


@pytest.mark.parametrize("points", [[], [[1, None]], [[None, 1]], [[math.nan, math.inf]]])
def test_a_chart_without_values_is_empty(points: list[Any]) -> None:
    assert line_chart(points) is None
    assert charts.interval_chart([Dot("a", None)], title="t", x_label="x") == ""
    assert charts.bar_chart([("a", None, "–")], title="t") == ""
    assert tree([], title="t") == ""


@pytest.mark.parametrize("scale", ["linear", "log", "sqrt"])
@pytest.mark.parametrize(
    "points", [[[0, 0]], [[5, 2]], [[3, 7], [3, 7]], [[1e-9, 1e18], [1e12, -1e18]], [[-4, 1], [-1, 2]]]
)
def test_extreme_ranges_stay_inside_the_chart(points: list[Any], scale: str) -> None:
    made = charts.line_chart(
        [Series("a", points)], title="t", x_label="x", x_scale=scale, marks=[Mark(points[0][0], "m")]
    )
    assert "nan" not in made
    places = re.findall(r' (cx|cy|x|y|x1|y1)="([^"]+)"', made)
    for name, value in places:
        assert -1 <= float(value) <= 281, name
    undrawable = {"linear": False, "sqrt": points[0][0] < 0, "log": points[0][0] <= 0}
    assert (made == "") == undrawable[scale]
    assert (len(places) < 8) == undrawable[scale]


def test_a_line_breaks_at_a_gap() -> None:
    path = (
        line_chart([[0, 1], [1, 2], [2, None], [3, 3], [4, math.nan], [5, 1], [6, 2]])
        .find(".//path[@class='line']")
        .get("d")
    )
    assert path.count("M") == 3
    assert path.count("L") == 2


def test_long_lines_are_averaged() -> None:
    path = line_chart([[i, i % 2] for i in range(10_000)]).find(".//path[@class='line']").get("d")
    heights = {point.split()[1] for point in re.split("[ML]", path)[1:]}
    assert path.count("L") == 199
    assert len(heights) == 1  # the mean of 0 and 1


@pytest.mark.parametrize(
    ("scale", "last", "ticks"),
    [
        ("linear", 1000, ["0", "200", "400", "600", "800", "1,000"]),
        ("linear", 960, ["0", "200", "400", "600", "800"]),
        ("linear", 1.2, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ("linear", 20_000, ["0", "5k", "10k", "15k", "20k"]),
        ("sqrt", 10, ["0", "1", "5", "10"]),
        ("log", 1000, ["1", "10", "100", "1,000"]),
    ],
)
def test_ticks_are_round_and_apart(scale: str, last: int, ticks: list[str]) -> None:
    first = 1 if scale == "log" else 0
    chart = line_chart([[first, 0], [last, 1]], x_scale=scale)
    below = [t for t in chart.iter("text") if t.get("class") == "middle"]
    assert [t.text for t in below[:-1]] == ticks
    places = [float(t.get("x")) for t in below[:-1]]
    assert min(b - a for a, b in pairwise(places)) >= 40


def test_names_at_line_ends_do_not_overlap() -> None:
    made = charts.line_chart(
        [Series(n, [[0, 1], [1, v]]) for n, v in zip("abcd", (2, 2.01, 2.02, 0), strict=True)], title="t", x_label="x"
    )
    heights = sorted(float(t.get("y")) for t in ElementTree.fromstring(made).iter("text") if t.text in "abcd")
    assert min(b - a for a, b in pairwise(heights)) >= 12.9


def test_an_interval_is_centered_on_its_value() -> None:
    made = ElementTree.fromstring(
        charts.interval_chart([Dot("a", 0.5, 0.4, 0.6), Dot("b", 0.9)], title="t", x_label="x", percent=True)
    )
    bars = [line for line in made.iter("line") if line.get("class") == "interval"]
    dots = [float(c.get("cx")) for c in made.iter("circle")]
    assert len(bars) == 1
    assert float(bars[0].get("x1")) + float(bars[0].get("x2")) == pytest.approx(2 * dots[0], abs=0.2)
    assert dots[1] > dots[0]
    assert {"50 %", "90 %"} <= {t.text for t in made.iter("text")}


def test_the_tree_puts_children_right_of_their_parent_and_accepts_cycles() -> None:
    nodes = [
        Node("a", None),
        Node("b", "a"),
        Node("c", "b"),
        Node("d", "a"),
        Node("e", "e"),
        Node("a", "c"),
        Node("f", "g"),
    ]
    made = ElementTree.fromstring(tree(nodes, title="t"))
    place = {t.text: float(t.get("x")) for t in made.iter("text") if t.get("class") == "strong"}
    assert place["a"] == place["e"] == place["f"] < place["b"] == place["d"] < place["c"]
    assert len([p for p in made.iter("path") if p.get("class") == "edge"]) == 3


def test_number_and_text_formats() -> None:
    assert [duration(s) for s in (3.21, 42.4, 612.3, 7_322, None)] == ["3.2 s", "42 s", "10 min 12 s", "2 h 2 min", "–"]
    assert [number(v) for v in (0.12345, -3, 12_345.6, math.nan, math.inf, None)] == [
        "0.1235",
        "−3",
        "12,346",
        "–",
        "∞",
        "–",
    ]
    assert number(-0.0004, 2) == "0.00"
    assert number(0.756, percent=True) == "76 %"
    assert short("a\n long \u202ename", 8) == "a long …"
    assert clean("a\x1b[2J\u202eb\nc\u200d") == "a[2Jb\nc\u200d"
    assert escape("<a href='x'>&") == "&lt;a href=&#x27;x&#x27;&gt;&amp;"
