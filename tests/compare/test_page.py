"""The report as a page: whole, safe, and readable on a phone and in the dark."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kvmpy.compare.figures import Answer, Figure, Question, Report
from kvmpy.compare.page import Scale, in_short, page

CHROMIUM = "chromium"
needs_browser = pytest.mark.calls(CHROMIUM)
NASTY = "<script>alert('&\"')</script>"
VOID = {"meta", "link", "br"}
PHONE, WIDE = 360, 1200


def figure(value: float) -> Answer:
    return Answer(figure=Figure(value, value * 0.9, value * 1.2, 9))


@pytest.fixture
def report() -> Report:
    """A report with everything in it that there can be."""
    names = ["process", "container", "vm", "software CPU", "runc"]
    return Report(
        machine={"processor": f"{NASTY} with a name that is very long indeed, as the makers of processors like it"},
        subjects={name: f"what {name} is, {NASTY}" for name in names},
        beside={"runc": "container"},
        missing={"runc": f"not installed {NASTY}"},
        questions=[
            Question("start", "from a process that is warm", "method one", "ms", code="def one():\n    return '<b>'",
                     answers={n: figure(10.0 ** i / 10) for i, n in enumerate(names[:4])}
                     | {"runc": Answer(missing=NASTY)}),
            Question("many", "memory of each of 100", "method two", "KiB", code="x" * 300,
                     answers={"process": figure(40), "container": figure(530), "vm": figure(540)}),
            Question("compute", "speed of arithmetic / native", "method three", "x", more_is_better=True,
                     answers={n: figure(1.0) for n in names[:3]}),
            Question("sees", "which kernel it runs on", "method four",
                     answers={n: Answer(words=NASTY) for n in names[:4]}),
        ],
        seconds=12.3,
    )  # fmt: skip


class Balance(HTMLParser):
    """Notes what is opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = page(report, "today")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert not {"script", "link", "img", "iframe"} & set(balance.tags)
    assert not re.search(r"url\(|https?:|src=|@import", text)


def test_names_and_words_cannot_break_it(report: Report) -> None:
    text = page(report, "today")
    assert NASTY not in text
    balance = Balance()
    balance.feed(text)
    assert NASTY in balance.text


def test_every_question_stands_with_its_method_and_its_code(report: Report) -> None:
    balance = Balance()
    balance.feed(page(report, "today"))
    for question in report.questions:
        for part in (question.title, question.method, question.code):
            assert part in balance.text


def test_there_are_contents_and_each_chart_has_its_marks(report: Report) -> None:
    """What it links to is there; linear marks are 0, half and all, logarithmic ones powers of ten."""
    text = page(report, "now")
    links = re.findall(r'<a href="#(\w+)">', text)
    assert links == re.findall(r'<h2 id="(\w+)">', text) == ["start", "many", "compute", "sees"]
    assert "@media print" in text
    axes = [re.findall(r">([^<]+)</span>", axis) for axis in re.findall(r'<dd class="axis">(.*?)</dd>', text)]
    assert axes == [["100 µs", "1.00 ms", "10.0 ms", "100 ms"], ["0.000 KiB", "324 KiB", "648 KiB"],
                    ["0.000 x", "0.600 x", "1.20 x"]]  # fmt: skip


def test_in_short_says_only_what_was_measured(report: Report) -> None:
    said = in_short(report)
    assert (
        said[0]
        == "Starting one from a warm process takes 100 µs as a process, 1.00 ms as a container, 10.0 ms as a vm."
    )
    assert (
        said[1] == "Of a hundred, each takes 40.0 KiB of memory as a process, 530 KiB as a container, 540 KiB as a vm."
    )
    del report.questions[0].answers["vm"]
    assert in_short(report)[0].endswith("1.00 ms as a container.")
    report.questions.clear()
    assert in_short(report) == []


def test_bars_are_as_long_as_their_values() -> None:
    scale = Scale([Figure(10, 10, 10, 1), Figure(20, 20, 20, 1)])
    assert not scale.logarithmic
    assert (scale.percent(20), scale.percent(10), scale.percent(0)) == (100, 50, 0)


def test_far_apart_values_get_a_logarithmic_scale() -> None:
    scale = Scale([Figure(1, 1, 1, 1), Figure(100, 100, 100, 1)])
    assert scale.logarithmic
    assert scale.percent(100) == pytest.approx(100)
    assert 0 < scale.percent(1) < scale.percent(10) < 100
    # ten times as much is the same step everywhere
    assert scale.percent(100) - scale.percent(10) == pytest.approx(scale.percent(10) - scale.percent(1), rel=0.01)


HARNESS = """<!DOCTYPE html><body style="margin:0"><iframe id="f" src="{page}"
style="width:{width}px;height:800px;border:0"></iframe><script>
document.getElementById("f").onload = function () {{
  const d = this.contentDocument, w = this.contentWindow;
  const style = w.getComputedStyle(d.body), text = w.getComputedStyle(d.querySelector("h1"));
  const height = () => d.querySelector("details").getBoundingClientRect().height, closed = height();
  d.querySelectorAll("details").forEach(e => e.open = true);
  document.body.dataset.result = JSON.stringify({{width: d.documentElement.scrollWidth,
    seen: d.documentElement.clientWidth, back: style.backgroundColor,
    text: text.color, size: parseFloat(style.fontSize), closed: closed, open: height(),
    bars: [...d.querySelectorAll(".bar")].slice(0, 4).map(b => b.getBoundingClientRect().width)}});
}};
</script></body>"""


def browse(tmp_path: Path, report: Report, width: int, *, dark: bool) -> dict[str, object]:
    """Open the page in a real browser, in a frame of that width, and return what it measured there."""
    import html
    import json

    assert CHROMIUM
    (tmp_path / "report.html").write_text(page(report, "today"))
    (tmp_path / "harness.html").write_text(HARNESS.format(page="report.html", width=width))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path}/profile", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/harness.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stdout[:500] + done.stderr[-500:]
    result: dict[str, object] = json.loads(html.unescape(found[1]))
    return result


def lightness(colour: object) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", str(colour))[:3])
    return (red + green + blue) / 3


@needs_browser
def test_a_phone_shows_it_without_scrolling_sideways(tmp_path: Path, report: Report) -> None:
    seen = browse(tmp_path, report, PHONE, dark=False)
    assert seen["width"] == seen["seen"]
    assert PHONE - 20 <= float(str(seen["seen"])) <= PHONE  # less a scroll bar
    assert seen["size"] == 16


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_by_day_and_in_the_dark(tmp_path: Path, report: Report, dark: bool) -> None:
    seen = browse(tmp_path, report, WIDE, dark=dark)
    back, text = lightness(seen["back"]), lightness(seen["text"])
    assert (back < 64 and text > 192) if dark else (back > 192 and text < 64)


@needs_browser
def test_the_browser_draws_longer_bars_for_larger_values_and_opens_the_code(tmp_path: Path, report: Report) -> None:
    seen = browse(tmp_path, report, WIDE, dark=False)
    bars = seen["bars"]
    assert isinstance(bars, list)
    assert bars == sorted(bars)
    assert bars[0] > 1
    assert bars[3] > 3 * bars[0]
    assert float(str(seen["open"])) > float(str(seen["closed"])) + 50
