"""What the scaling of an app would make of a trace: `%fal simulate`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.gateway import plan
from fal_notebook.gateway.autoscaler import Scaling
from fal_notebook.gateway.simulate import FOR_EVER, Request, Start, simulate
from fal_notebook.handle import Handle
from fal_notebook.machines import MachineType, this_host
from fal_notebook.option_errors import unknown_option
from fal_notebook.options import parse_options
from fal_notebook.simulation_view import SimulationView

_NAMES = [field.name for field in fields(Scaling)]
# Seconds that a start takes where none of the app is known.
_START = 1.0
_FORM = "each line is ARRIVAL,DURATION in seconds, from 0 to 1e12, such as 12.5,0.2"


def of(
    handle: Handle, path: str, values: Mapping[str, Any], start: float | None = None
) -> SimulationView:
    """Replay a trace with the scaling of an app.

    Parameters
    ----------
    path : str
        The trace, see `read`.
    values : mapping
        Options of scaling that are other than the app's.
    start : float, optional
        Seconds that a runner takes to start, by default what the app's last starts took.

    Raises
    ------
    OptionError
        When an option or the trace is wrong.
    """
    app = handle.status()
    options = {**app["options"], **_checked(values)}
    machine = MachineType(**app["machine"])
    scaling = plan.scaling(options, machine, this_host())  # where max_concurrency may be none
    seconds, whence = _usual(handle) if start is None else (start, "given")
    gpus = app["machine"]["gpus"]
    result = simulate(read(path), scaling, Start(0.0, seconds), gpus=gpus)
    assumed = ", ".join(f"{name}={getattr(scaling, name):g}" for name in _NAMES)
    return SimulationView(result, f"{assumed}; a start takes {seconds:.2f} s, {whence}")


def _usual(handle: Handle) -> tuple[float, str]:
    """Return how many seconds a start of the app takes, and where that is from.

    Who waits for what is simulated, and nothing is deployed: `queued` and `build` do not count.
    """
    known = handle.starts()
    number, took = len(known["starts"]), known["median"]
    if not number:
        return _START, "assumed: no runner of the app has come up yet"
    whence = f"the median of its last {number}" if number > 1 else "as its only one did"
    return took["start"] + took["setup"], whence


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := [unknown_option(name, _NAMES) for name in values if name not in _NAMES]:
        raise OptionError("; ".join(unknown))
    options = parse_options(values)
    return {name: getattr(options, name) for name in values}


def read(path: str) -> list[Request]:
    """Return the requests of a CSV file, sorted by their arrival.

    A first line may name the columns, and may name the duration first.

    Raises
    ------
    OptionError
        When there is no such file, or a line is not two numbers from 0 on.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            found = sorted(_requests(path, csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"cannot read the trace {path}: {error}") from None
    if not found:
        raise OptionError(f"the trace {path} has no requests; {_FORM}")
    return found


def _requests(path: str, rows: Iterator[list[str]]) -> Iterator[Request]:
    turned = False
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and not any(char.isdigit() for char in "".join(row))):
            turned = bool(row) and row[0].strip().lower().startswith("duration")
            continue
        try:
            at, seconds = (float(cell) for cell in (reversed(row) if turned else row))
        except ValueError:
            at = seconds = math.nan
        if not (0 <= at < FOR_EVER and 0 <= seconds < FOR_EVER):
            raise OptionError(f"line {number} of the trace {path} is {','.join(row)!r}; {_FORM}")
        yield Request(at, seconds)
