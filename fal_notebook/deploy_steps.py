"""The steps of a deploy as they are shown: a bar, the elapsed time, what they said last."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BAR = 20
_COUNTED = re.compile(r"Step (\d+)/(\d+) : ")


@dataclass
class Step:
    """One step, which runs until `ended`; times are seconds of the clock.

    `said` is what it printed last, and `part` how much of it is done, from 0 to 1.
    """

    text: str
    began: float
    ended: float | None = None
    said: str = ""
    part: float | None = None

    @property
    def seconds(self) -> float:
        """How long it took, or has been running."""
        return max(0.0, (time.time() if self.ended is None else self.ended) - self.began)

    @property
    def bar(self) -> str:
        """A bar of what is done of it, or of all that it is one of; empty for what is unknown."""
        part = self.part
        if part is None and (found := _COUNTED.search(self.text)):
            part = (int(found[1]) - 1) / int(found[2])
        if part is None:
            return ""
        full = min(_BAR, int(part * _BAR))
        return "█" * full + "░" * (_BAR - full) + " "


def lines(steps: Sequence[Step]) -> Iterator[str]:
    """Yield finished steps with their time; below the one that runs, how far it is."""
    for step in steps:
        if step.ended is None:
            said = f"  {step.said}" if step.said else ""
            yield from (step.text, f"  {step.bar}{_time(step)}{said}")
        else:
            yield f"{step.text} ({step.seconds:.1f} s)" if step.seconds >= 0.05 else step.text


def in_one_line(step: Step, width: int) -> str:
    """Return a step that runs, with how far it is, in at most so many columns."""
    head = f"{step.bar if width > 3 * _BAR else ''}{_time(step)}  "
    room = max(0, width - len(head))
    text = shortened(step.text, max(room // 2, room - len(step.said) - 2))
    return shortened(f"{head}{text}  {step.said}".rstrip(), width)


def printable(text: str) -> str:
    """Return what a program printed as one line that steers no terminal."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shortened(text: str, width: int) -> str:
    """Return the beginning of a text that is longer than that."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def _time(step: Step) -> str:
    minutes, seconds = divmod(int(step.seconds), 60)
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
