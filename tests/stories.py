"""A demo, shown to a test instead of a person."""

from __future__ import annotations

from kvmpy.demos import load
from kvmpy.demos.scene import FAILS, HOLDS, MISSING, SAW, STEP, WHY, Scene


class Story:
    """What a demo told, by kind."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def say(self, kind: str, text: str) -> None:
        self.told.append((kind, text))

    def of(self, kind: str) -> list[str]:
        return [text for told, text in self.told if told == kind]

    @property
    def steps(self) -> list[str]:
        return self.of(STEP)

    @property
    def saw(self) -> list[str]:
        return self.of(SAW)

    @property
    def whys(self) -> list[str]:
        return self.of(WHY)

    @property
    def holds(self) -> list[str]:
        return self.of(HOLDS)

    @property
    def fails(self) -> list[str]:
        return self.of(FAILS)

    @property
    def missing(self) -> list[str]:
        return self.of(MISSING)


def tell(name: str, accelerator: str | None = None) -> Story:
    """Show a demo; return its story."""
    story = Story()
    with Scene(story.say, accelerator) as scene:
        load(name).run(scene)
    return story
