"""What a measurement is, and how it is printed: a table of ratios with the machine's facts."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

LIBRARIES = ("fal-notebook", "fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "ipython")
_BEGIN, _END = "<!-- table -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Result:
    """One row: figures of ours and of the peer, taken in turn (A B A B).

    Attributes
    ----------
    unit : str
        Of all figures.
    ours, peer : list of float
        One figure per round; the n-th of both belong together. `peer` may be empty.
    budget : float, optional
        What ours should not exceed, or of a rate not fall below.
    more_is_better : bool
        True for a rate.
    difference : bool
        Whether a figure is what two measurements differ by; 0 or less is below their noise then.
    """

    name: str
    unit: str
    ours: list[float]
    peer_name: str = ""
    peer: list[float] = field(default_factory=list)
    budget: float | None = None
    more_is_better: bool = False
    difference: bool = False

    @property
    def ratio(self) -> float | None:
        """The median of ours / peer, pair by pair; None when there is nothing to compare with.

        A difference of two measurements may be negative under load, which says nothing.
        """
        if not self.peer or median(self.peer) <= 0 or median(self.ours) < 0:
            return None
        pairs = [a / b for a, b in zip(self.ours, self.peer, strict=False) if b > 0]
        return median(pairs) if pairs else None

    @property
    def _sign(self) -> str:
        return "≥" if self.more_is_better else "≤"

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [
            self.name,
            self._median(self.ours),
            f"{_figure(min(self.ours))}–{_figure(max(self.ours))}",
            "" if self.budget is None else f"{self._sign} {_figure(self.budget)} {self.unit}",
            f"{self.peer_name}: {self._median(self.peer)}" if self.peer else "",
            self._compared() if self.peer else "",
        ]

    def _compared(self) -> str:
        ratio = self.ratio
        if ratio is None:
            return "not measurable"
        return f"{ratio:.2f}" + (" ↑" if self.more_is_better else "")

    def _median(self, figures: list[float]) -> str:
        middle = median(figures)
        noise = self.difference and middle <= 0
        return "below noise" if noise else f"{_figure(middle)} {self.unit}"


COLUMNS = ["measured", "median", "min–max", "budget", "peer in the same run", "ratio"]


def table(results: list[Result]) -> str:
    """Return all rows as a Markdown table that is aligned for a terminal too."""
    return aligned([list(COLUMNS), *(result.cells() for result in results)])


def aligned(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table; the first is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def facts(tools: dict[str, str]) -> dict[str, str]:
    """Return what the figures depend on: machine, load, Python, versions, commit."""
    load = os.getloadavg()[0]
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB, {platform.system()}",
        "load before": f"{load:.2f}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "tools": ", ".join(f"{name} {text}" for name, text in tools.items()),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def write_json(path: Path, about: dict[str, str], results: list[Result]) -> None:
    """Write every single figure."""
    rows = [{**asdict(result), "ratio": result.ratio} for result in results]
    path.write_text(json.dumps({"facts": about, "results": rows}, indent=1) + "\n")


def write_markdown(path: Path, about: dict[str, str], results: list[Result]) -> None:
    """Put the table into RESULTS.md; what people wrote around it stays."""
    before, _, rest = path.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    listed = "\n".join(f"- {name}: {text}" for name, text in about.items())
    path.write_text(f"{before}{_BEGIN}\n\n{table(results)}\n\n{listed}\n\n{_END}{after}")


def tool_version(*command: str) -> str:
    """Return the first version number in what a tool says about itself, "" without the tool."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "of unknown version"


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    return float(psutil.virtual_memory().total) / 1e9


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "../fal_notebook")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" * bool(changed))


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def say(text: str) -> None:
    """Tell progress where it does not mix with the table."""
    print(text, file=sys.stderr, flush=True)
