"""Measures fal_notebook against peers in the same run and prints ratios (``make bench``).

Every figure is the median of several rounds that take turns with the peer's (A B A B) after a
warm-up. All figures go to results.json; ``--save`` also puts the table into RESULTS.md. The
gateway's state lies in a private folder, and nothing is left running.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import autoscaling
import docker_rows
import queues
import report
import rows
import streams
from rows import QUICK, Effort
from session import session

HERE = Path(__file__).parent
ROWS = {
    **rows.ROWS,
    **autoscaling.ROWS,
    **queues.ROWS,
    **streams.ROWS,
    **docker_rows.ROWS,
}


def main() -> int:
    """Measure the rows that were asked for; return the exit status."""
    given = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    tools = {
        "wrk": report.tool_version("wrk", "-v"),
        "nginx": report.tool_version("nginx", "-v"),
    }
    if given.plain:
        tools = dict.fromkeys(tools, "")
    effort = QUICK if given.quick else Effort()
    effort = replace(effort, wrk=bool(tools["wrk"]), nginx=bool(tools["nginx"]))
    about = report.facts({name: text or "not used" for name, text in tools.items()})
    results = []
    with session() as here:
        for name in given.rows or ROWS:
            started = time.monotonic()
            results += ROWS[name](here, effort)
            report.say(f"{name}: {time.monotonic() - started:.0f} s")
    print(report.table(results))
    print(*(f"{name}: {text}" for name, text in about.items()), sep="\n")
    report.write_json(given.json, about, results)
    if given.save:
        report.write_markdown(HERE / "RESULTS.md", about, results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"which rows (all): {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--plain", action="store_true", help="use neither wrk nor nginx")
    parser.add_argument("--save", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="all figures")
    given = parser.parse_args()
    unknown = sorted(set(given.rows) - set(ROWS))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; rows are {', '.join(ROWS)}")
    return given


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is left running.", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    os._exit(status)  # the shell's worker threads have nothing to finish
