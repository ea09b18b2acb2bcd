"""Ask what the runners of apps cost: billed seconds per state, and money where prices are set."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from fal_notebook import settings
from fal_notebook.gateway.billing import day_of
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.meter import BILLED
from fal_notebook.gateway.operations.apps import find

# So many days are added up where nobody says how many, and billed seconds are kept (days).
DAYS = 7
KEPT = 400

_DAY = 24 * 3600
_HOUR = 3600


def cost(gateway: Gateway, owner: str, name: str, days: int = DAYS) -> dict[str, Any]:
    """Return billed seconds and money by revision, machine type and state.

    Parameters
    ----------
    name : str
        An app, or "" for all of the owner, in which revisions are not told apart.
    days : int
        Today and so many days before it, in UTC.

    Returns
    -------
    dict
        `since`, the first day, and `billed`: app, revision, machine_type, state, seconds and
        money, which is None where no price is configured.

    Raises
    ------
    NotFoundError
        When there is no such app and never was.
    SettingError
        When a price is not a number.
    """
    prices, first = settings.prices(), day_of(time.time() - days * _DAY)
    totals = defaultdict[tuple[str, int | None, str, str], float](float)
    for row in gateway.billing.rows(owner, name, first):
        revision = row.revision if name else None
        totals[row.app, revision, row.machine_type, row.state] += row.seconds
    if name and not totals:
        find(gateway, owner, name)
    return {
        "since": first,
        "billed": [
            {
                **dict(zip(("app", "revision", "machine_type", "state"), key, strict=True)),
                "seconds": totals[key],
                "money": money(totals[key], prices.get(key[2])),
            }
            for key in sorted(totals, key=lambda key: (*key[:3], BILLED.index(key[3])))
        ],
    }


def money(seconds: float, price: float | None) -> float | None:
    """Return what billed seconds cost at a price per hour; None where there is no price."""
    return None if price is None else seconds / _HOUR * price


def prune(gateway: Gateway) -> None:
    """Remove what was billed long ago."""
    gateway.store.forget_billed(day_of(time.time() - KEPT * _DAY))
