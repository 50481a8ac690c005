"""What an answer is: a figure with its spread, or words; and the question it answers."""

from __future__ import annotations

import statistics

from kvmpy.record import asdict, field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record
class Figure:
    """The median of some measurements, with their quartiles, in the question's unit."""

    median: float
    lower: float
    upper: float
    count: int

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in parts of the median; 0 of a single measurement."""
        return (self.upper - self.lower) / 2 / self.median if self.median else 0.0

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        """Return the figure of these measurements; of one, all three are the same."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, len(values))


@record
class Answer:
    """What one subject answered: a figure, words, or neither, with the reason in `missing`."""

    figure: Figure | None = None
    words: str = ""
    missing: str = ""


@record
class Question:
    """One row of the report. `method` tells how it is answered, `code` is what took it, `unit` is of its figures.

    `answers` are by the subject's name. `note` is what to think of when reading them.
    """

    group: str
    title: str
    method: str
    unit: str = ""
    code: str = ""
    note: str = ""
    more_is_better: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)


@record
class Report:
    """All of it: the machine, who was asked (name and what it is), what each lacks, and the questions.

    `beside` tells of runtimes of others which of the subjects they are compared with.
    """

    machine: dict[str, str]
    subjects: dict[str, str]
    beside: dict[str, str]
    missing: dict[str, str]
    questions: list[Question]
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        data: dict[str, Any] = asdict(self)
        for question, plain in zip(self.questions, data["questions"], strict=True):
            plain["answers"] = {name: asdict(answer) for name, answer in question.answers.items()}
        return data


def told(figure: Figure, unit: str) -> str:
    """Return a figure with its spread: `252 KiB ±3%`; without one where it was measured once."""
    text = shown(figure.median, unit)
    return f"{text} ±{figure.spread:.0%}" if figure.count > 1 else text


def shown(value: float, unit: str) -> str:
    """Return a value as a person reads it: three digits, in a unit that suits its size."""
    for scale, units in SCALES:
        if unit in units:
            value, unit = _scaled(value, unit, units, scale)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} {unit}".rstrip()


# Units that follow one another, and by what.
SCALES = ((1000.0, ("ns", "µs", "ms", "s")), (1024.0, ("KiB", "MiB", "GiB")))


def _scaled(value: float, unit: str, units: tuple[str, ...], scale: float) -> tuple[float, str]:
    at = units.index(unit)
    while value >= scale and at + 1 < len(units):
        value, at = value / scale, at + 1
    while 0 < value < 1 and at > 0:
        value, at = value * scale, at - 1
    return value, units[at]
