"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import math
from html import escape

from kvmpy.compare.figures import shown
from kvmpy.compare.report import GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.compare.figures import Answer, Figure, Question, Report

WIDE_SPREAD = 30.0  # when the largest is so many times the smallest, the scale is logarithmic
SHORTEST = 1.5  # percent: a bar that can be seen
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --dim: #57606a; --line: #d0d7de; --card: #f6f8fa;
  --c0: #6e7781; --c1: #0969da; --c2: #bc4c00; --c3: #8250df; --c4: #54aeff; --c5: #0550ae; --c6: #e16f24; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --dim: #9198a1; --line: #30363d;
  --card: #161b22; --c0: #9198a1; --c1: #58a6ff; --c2: #f0883e; --c3: #bc8cff; --c4: #a5d6ff; --c5: #388bfd;
  --c6: #ffa657; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .5rem; } p { margin: .5rem 0; } small, .dim { color: var(--dim); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  margin: 1rem 0; }
dl { display: grid; grid-template-columns: 7.5rem 1fr; gap: .2rem 1rem; margin: 0; }
nav a { color: inherit; margin-right: 1rem; }
.axis { position: relative; height: 1.3rem; border-top: 1px solid var(--line); font-size: .75rem; color: var(--dim); }
.axis span { position: absolute; top: .1rem; transform: translateX(-50%); white-space: nowrap; }
.axis span:first-child { transform: none; } .axis span:last-child { transform: translateX(-100%); }
dt { font-weight: 600; } .track { margin-bottom: .3rem; } dd { margin: 0; min-width: 0; }
.track { position: relative; height: .9rem; margin: .25rem 0 0; }
.bar { height: 100%; border-radius: .2rem; min-width: 2px; }
.spread { position: absolute; top: 50%; height: 2px; background: var(--text); opacity: .6; }
.value { font-variant-numeric: tabular-nums; } .no { color: var(--dim); font-style: italic; }
details { margin-top: .6rem; } summary { cursor: pointer; color: var(--dim); }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.35; background: var(--back); border: 1px solid var(--line);
  border-radius: .4rem; padding: .6rem; }
@media print { :root { --back: #fff; --text: #000; --dim: #444; --line: #999; --card: #fff; }
  nav, details { display: none; }
  .card { break-inside: avoid; } .bar, .spread { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(report: Report, made: str) -> str:
    """Return the HTML of a report; `made` is when it was."""
    body = "\n".join([*_head(report, made), *_groups(report), _foot()])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Process, container, virtual machine</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report, made: str) -> Iterator[str]:
    yield "<h1>Process, container, virtual machine: the same questions</h1>"
    yield f'<p class="dim">Measured here by kvmpy, {escape(made)}, in {report.seconds:.0f} s.</p>'
    links = (f'<a href="#{group}">{escape(GROUPS[group])}</a>' for group in _groups_of(report))
    yield f"<nav>{''.join(links)}</nav>"
    yield '<div class="card"><h3>In short</h3><ul>'
    yield from (f"<li>{escape(sentence)}</li>" for sentence in in_short(report))
    yield "</ul></div>"
    yield '<div class="card"><h3>Who was asked</h3><dl>'
    for number, (name, what) in enumerate(report.subjects.items()):
        missing = report.missing.get(name)
        more = f' <span class="no">Missing here: {escape(missing)}</span>' if missing else ""
        yield f'<dt style="color: var(--c{number % 7})">{escape(name)}</dt><dd>{escape(what)}{more}</dd>'
    yield "</dl></div>"
    yield '<div class="card"><h3>The machine</h3><dl>'
    yield from (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.machine.items())
    yield "</dl></div>"


def in_short(report: Report) -> list[str]:
    """Return what the figures say in sentences; what was not measured is not said."""
    found = {question.title: question.answers for question in report.questions}
    sentences = []
    for title, what in (
        ("from a process that is warm", "Starting one from a warm process takes {} as a {}"),
        ("memory of each of 100", "Of a hundred, each takes {} of memory as a {}"),
    ):
        unit = next((question.unit for question in report.questions if question.title == title), "")
        parts = [
            (shown(answer.figure.median, unit), name)
            for name, answer in found.get(title, {}).items()
            if answer.figure and name in ("process", "container", "vm")
        ]
        if parts:
            sentences.append(what.format(*parts[0]) + "".join(f", {v} as a {n}" for v, n in parts[1:]) + ".")
    speeds = found.get("speed of arithmetic / native", {})
    told = ", ".join(f"{name} {answer.figure.median:.2f}" for name, answer in speeds.items() if answer.figure)
    if told:
        sentences.append(f"Arithmetic, native being 1: {told}.")
    kernels = found.get("which kernel it runs on", {})
    told = "; ".join(f"{name}: {answer.words}" for name, answer in kernels.items() if answer.words)
    if told:
        sentences.append(f"The kernel each runs on: {told}.")
    return sentences


def _groups(report: Report) -> Iterator[str]:
    colours = {name: f"var(--c{number % 7})" for number, name in enumerate(report.subjects)}
    for group in _groups_of(report):
        yield f'<h2 id="{group}">{escape(GROUPS[group])}</h2>'
        for question in report.questions:
            if question.group == group:
                yield from _card(question, colours)


def _groups_of(report: Report) -> list[str]:
    asked = {question.group for question in report.questions}
    return [group for group in GROUPS if group in asked]


def _card(question: Question, colours: dict[str, str]) -> Iterator[str]:
    figures = [answer.figure for answer in question.answers.values() if answer.figure]
    scale = Scale(figures)
    hint = f"{'more' if question.more_is_better else 'less'} is better" if figures else ""
    if figures and scale.logarithmic:
        hint += ", logarithmic scale"
    yield f'<div class="card"><h3>{escape(question.title)} <small>{hint}</small></h3><dl>'
    for name, answer in question.answers.items():
        yield f"<dt>{escape(name)}</dt><dd>{_answer(answer, question.unit, scale, colours[name])}</dd>"
    if figures:
        yield f'<dt></dt><dd class="axis">{_axis(scale, question.unit)}</dd>'
    yield "</dl>"
    if question.note:
        yield f"<p><small>{escape(question.note)}</small></p>"
    yield f"<details><summary>How it was found</summary><p>{escape(question.method)}</p>"
    if question.code:
        yield f"<pre><code>{escape(question.code)}</code></pre>"
    yield "</details></div>"


def _answer(answer: Answer, unit: str, scale: Scale, colour: str) -> str:
    if answer.missing:
        return f'<span class="no">{escape(answer.missing)}</span>'
    if not answer.figure:
        return escape(answer.words)
    figure = answer.figure
    text = f'<span class="value">{escape(shown(figure.median, unit))}</span>'
    spread = ""
    if figure.count > 1:
        low, high = (escape(shown(value, unit)) for value in (figure.lower, figure.upper))
        text += f" <small>quartiles {low} to {high}, {figure.count} times</small>"
        left, right = scale.percent(figure.lower), scale.percent(figure.upper)
        spread = f'<div class="spread" style="left: {left:.2f}%; width: {max(right - left, 0.3):.2f}%"></div>'
    bar = f'<div class="bar" style="width: {scale.percent(figure.median):.2f}%; background: {colour}"></div>'
    return f'{text}<div class="track">{bar}{spread}</div>'


def _axis(scale: Scale, unit: str) -> str:
    """Return the marks below a chart; all its bars are by this one scale."""
    marks = [f'<span style="left: {scale.percent(v):.2f}%">{escape(shown(v, unit))}</span>' for v in scale.marks()]
    return "".join(marks)


class Scale:
    """From a value to the length of its bar in percent."""

    def __init__(self, figures: list[Figure]) -> None:
        values = [figure.median for figure in figures if figure.median > 0]
        self._most = max((figure.upper for figure in figures), default=1.0) or 1.0
        self._least = min(values, default=1.0)
        self.logarithmic = bool(values) and self._most / self._least > WIDE_SPREAD

    def marks(self) -> list[float]:
        """Return the values to be marked: 0, half and all; on a logarithmic scale powers of ten, four at most."""
        if not self.logarithmic:
            return [0.0, self._most / 2, self._most]
        tens = range(math.ceil(math.log10(self._least / 2)), math.floor(math.log10(self._most)) + 1)
        return [10.0**exponent for exponent in tens[:: math.ceil(len(tens) / 4)]]

    def percent(self, value: float) -> float:
        """Return 0 to 100; on a logarithmic scale the smallest value still has a bar."""
        if value <= 0:
            return 0.0
        if not self.logarithmic:
            return 100 * value / self._most
        low = math.log(self._least / 2)
        return max(SHORTEST, 100 * (math.log(value) - low) / (math.log(self._most) - low))


def _foot() -> str:
    return (
        '<p class="dim">Every figure is a median; in each round all had a turn, so that what disturbed the machine '
        "disturbed all alike. One machine, one run: compare within this page, not between two.</p>"
    )
