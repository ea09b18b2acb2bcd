"""How deploys, apps and lists look in a notebook and in a terminal; user text is escaped."""

from __future__ import annotations

import html
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fal_notebook import deploy_steps
from fal_notebook.deploy_progress import LOG_LINES, Progress
from fal_notebook.deploy_steps import shortened
from fal_notebook.machines import MachineType, figures
from fal_notebook.payload import Payload

_COLOURS = {"active": "#2e7d32", "up to date": "#2e7d32", "failed": "#c62828"}
_STEPS_SHOWN = 6
_CALLERS_SHOWN = 5
# As wide are values of a status in text, such as an image's Dockerfile.
_WIDEST = 100
# Where options were given, by how their holder is called.
_ORIGINS = {"project ": "pyproject", "a program ": "program"}


class DeployView:
    """The output of a deploying cell, as HTML and as text."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @property
    def over(self) -> bool:
        """Whether the deploy has ended, well or not."""
        return self.progress.state != "deploying"

    @property
    def state(self) -> str:
        """How it stands, in a word or three."""
        p = self.progress
        return p.state if p.number or p.state != "deploying" else "starts the gateway"

    def notes(self) -> list[str]:
        """Return what a reader should know besides: options taken over, packages, warnings."""
        p = self.progress
        return [*inherited_lines(p.inherited), *_packages(p), *p.notices, *p.payload.warnings]

    def __repr__(self) -> str:
        p = self.progress
        revision = f" (revision {p.number})  {p.url}" if p.number else ""
        lines = [f"{p.name}: {self.state}{revision}"]
        lines += [f"  {line}" for line in inherited_lines(p.inherited)]
        lines += [f"  {line}" for line in _packages(p)]
        lines += [f"  note: {text}" for text in (*p.notices, *p.payload.warnings)]
        lines += [f"  {line}" for line in _steps(p)]
        if p.state in ("failed", "cancelled"):
            lines += [f"  {p.error}", *(f"  | {line}" for line in p.log[-LOG_LINES:])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        p = self.progress
        colour = _COLOURS.get(p.state, "#1565c0")
        head = f"<b>{_text(p.name)}</b> <span style='color:{colour}'>{self.state}</span>"
        if p.number:
            head += f" · revision {p.number} · <code>{_text(p.url)}</code>"
        rows = [f"<div style='opacity:.75'>{_text(note)}</div>" for note in self.notes()]
        style = "white-space:pre-wrap"
        rows += [f"<div><code style='{style}'>{_text(line)}</code></div>" for line in _steps(p)]
        if p.state in ("failed", "cancelled"):
            rows.append(f"<div style='color:{colour}'>{_text(p.error)}</div>")
            log = "\n".join(p.log[-LOG_LINES:])
            rows += [f"<pre>{_text(log)}</pre>"] if log else []
        return f"<div>{head}{''.join(rows)}</div>"


class Table:
    """Rows under named columns; as text no cell with others behind it is longer than `widest`."""

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        empty: str,
        widest: int = sys.maxsize,
    ) -> None:
        self._columns = columns
        self._rows = [[str(cell) for cell in row] for row in rows]
        self._empty = empty
        self._widest = widest

    def __repr__(self) -> str:
        if not self._rows:
            return self._empty
        lines = [self._cut(line) for line in (self._columns, *self._rows)]
        widths = [
            max((len(line[i]) for line in lines if i < len(line) - 1), default=0)
            for i in range(len(self._columns))
        ]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
            for line in lines
        )

    def _cut(self, line: Sequence[str]) -> list[str]:
        """Return the cells up to the last that says something, which alone may be long."""
        count = max((n for n, cell in enumerate(line, 1) if cell), default=0)
        return [
            *(shortened(cell, self._widest) for cell in line[: count - 1]),
            *line[count - 1 : count],
        ]

    def _repr_html_(self) -> str:
        if not self._rows:
            return f"<div>{_text(self._empty)}</div>"
        head = "".join(f"<th style='text-align:left'>{_text(name)}</th>" for name in self._columns)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{_text(c)}</td>" for c in row) + "</tr>"
            for row in self._rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def inherited_lines(inherited: Mapping[str, Any]) -> list[str]:
    """Return one line per option that is taken over from the running revision."""
    return [
        f"inherited {name}={value} (reset_scale=true resets)" for name, value in inherited.items()
    ]


def captured_table(payload: Payload) -> Table:
    """Return what a payload captures: name, kind, bytes."""
    rows = [(item.name, item.kind, f"{item.size:,}") for item in payload.captured]
    return Table(("captured", "kind", "bytes"), rows, "nothing is captured")


def apps_table(apps: Sequence[dict[str, Any]]) -> Table:
    """Return one row per app."""
    rows = [
        (a["name"], _state(a), a["number"], a["runners"], a["in_flight"], a["queued"], a["url"])
        for a in apps
    ]
    columns = ("app", "state", "revision", "runners", "in flight", "queued", "url")
    return Table(columns, rows, "no apps yet: run a cell that begins with %%fal_function")


def status_table(app: dict[str, Any]) -> Table:
    """Return an app's facts and every option in force, one per row."""
    machine = MachineType(**app["machine"])
    facts = {
        "app": f"{app['owner']}/{app['name']}",
        "url": app["url"],
        "state": _state(app),
        "revision": f"{app['number']} ({app['revision']})",
        "environment": app["env"],
        "notebook": app["notebook"],
        "runners": app["runners"],
        "in flight / queued": f"{app['in_flight']} / {app['queued']}",
        "machine": f"{machine.name}: {figures(machine)}",
    }
    if app["callers"]:
        facts["called by"] = _callers(app["callers"])
    if app["step"]:
        facts["last step"] = app["step"]
    if app["last_error"]:
        facts["last error"] = app["last_error"]
    rows = [(name, value, "") for name, value in facts.items()]
    rows += [("note", text, "") for text in app["notices"]]
    rows += [(name, value, _origin(app, name)) for name, value in sorted(app["options"].items())]
    return Table(("", "value", "from"), rows, "", _WIDEST)


def _callers(callers: Sequence[dict[str, Any]]) -> str:
    told = [
        f"{c['user'] or 'without a key'} {c['requests']} (last {_shortly(c['last_at'])})"
        for c in callers[:_CALLERS_SHOWN]
    ]
    more = len(callers) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def runners_table(runners: Sequence[dict[str, Any]], app: dict[str, Any] | None = None) -> Table:
    """Return one row per runner; those of more than one app say of which they are.

    GPUs have a column where a runner holds some. The status of an app says why it has none.
    """
    with_app = all("app" in runner for runner in runners)
    with_gpus = any(runner["gpus"] for runner in runners)
    rows = [
        (
            *([r["app"]] if with_app else []),
            r["id"],
            r["state"],
            r["in_flight"],
            r["machine_type"],
            *([",".join(r["gpus"])] if with_gpus else []),
            f"{time.time() - r['created_at']:.0f} s",
            f"{r['memory_bytes'] / 1e6:.0f} MB" if "memory_bytes" in r else "",
            _cause(r),
        )
        for r in runners
    ]
    gpus = ["GPUs"] if with_gpus else []
    columns = ["runner", "state", "in flight", "machine", *gpus, "age", "memory", "cause"]
    columns = ["app", *columns] if with_app else columns
    return Table(columns, rows, f"no runners: {_why_none(app or {})}")


def _why_none(app: dict[str, Any]) -> str:
    if app.get("next_try_at") is None:
        return "the app is scaled to zero"
    return f"CRASH_BACKOFF, {_next_try(app['next_try_at'])}: {app['last_error']}"


def _cause(runner: dict[str, Any]) -> str:
    at = runner.get("next_try_at")
    return str(runner["cause"]) if at is None else f"{_next_try(at)}: {runner['cause']}"


def _next_try(at: float) -> str:
    left = at - time.time()
    return f"next try in {left:.0f} s" if left > 0 else "next try with the next request"


def keys_table(keys: Sequence[dict[str, Any]]) -> Table:
    """Return one row per key, without secrets."""
    rows = [
        (k["id"], k["user"], k["scope"], k["alias"], "revoked" if k["revoked_at"] else "")
        for k in keys
    ]
    return Table(
        ("key id", "user", "scope", "alias", ""), rows, "no keys: make one with keys create"
    )


def revisions_table(revisions: Sequence[dict[str, Any]]) -> Table:
    """Return one row per revision; of those that failed, why."""
    rows = [
        (
            r["number"],
            r["state"],
            _when(r["created_at"]),
            r["origin"],
            r["message"],
            r["error"].partition("\n")[0],
        )
        for r in revisions
    ]
    return Table(("revision", "state", "deployed", "copy of", "message", ""), rows, "no revisions")


def envs_table(envs: Sequence[dict[str, Any]]) -> Table:
    """Return one row per environment."""
    rows = [(e["name"], ", ".join(e["apps"]), e["secrets"]) for e in envs]
    return Table(("environment", "apps", "secrets"), rows, "")


def secrets_table(secrets: Sequence[dict[str, Any]]) -> Table:
    """Return one row per secret, without values."""
    lost = "cannot be read with this secrets.key: set it again"
    rows = [(s["name"], s["env"], _when(s["set_at"]) if s["readable"] else lost) for s in secrets]
    columns = ("secret", "environment", "set")
    return Table(columns, rows, "no secrets: store one with secrets set NAME")


def errors_table(errors: Sequence[dict[str, Any]]) -> Table:
    """Return one row per type and place of errors."""
    seen = ("first_seen", "last_seen")
    rows = [
        (e["type"], e["place"], e["count"], *(_when(e[at]) for at in seen), e["request"])
        for e in errors
    ]
    columns = ("type", "place", "count", "first seen", "last seen", "request")
    return Table(columns, rows, "no request of the app has failed")


class ImageView:
    """An app's image: what it is called, its layers with their commands, its Dockerfiles."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about

    def _facts(self) -> Table:
        about = self._about
        rows = [("app", f"{about['app']}, revision {about['revision']}")]
        rows += [(name, about[name]) for name in ("image", "id", "digest") if about[name]]
        rows += [("size", _megabytes(about["size"])), ("platform", about["platform"])]
        rows += [(f"label {name}", value) for name, value in sorted(about["labels"].items())]
        return Table(("image", ""), rows, "")

    def _layers(self, width: int = 100) -> Table:
        rows = [
            (number, _megabytes(layer["size"]), shortened(_command(layer["command"]), width))
            for number, layer in enumerate(self._about["layers"], 1)
        ]
        return Table(("layer", "size", "command"), rows, "no layers")

    def _dockerfiles(self) -> list[str]:
        return [text.strip() for text in self._about["dockerfiles"]]

    def __repr__(self) -> str:
        texts = [f"Dockerfile:\n{text}" for text in self._dockerfiles()]
        return "\n\n".join([repr(self._facts()), repr(self._layers()), *texts])

    def _repr_html_(self) -> str:
        texts = [f"<pre>{_text(text)}</pre>" for text in self._dockerfiles()]
        return "".join([self._facts()._repr_html_(), self._layers(1000)._repr_html_(), *texts])


def prune_table(found: Mapping[str, Any]) -> Table:
    """Return what a pruning removed, or would remove, and how many bytes."""
    rows = [("container", name) for name in found["containers"]]
    rows += [("image", name) for name in found["images"]]
    told = "would go" if found["dry_run"] else "removed"
    rows += [(told, _megabytes(found["bytes"]))] if rows else []
    return Table(("", told), rows, "nothing to remove: apps need all images and containers")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size / 1e3:.1f} kB"


def _command(text: str) -> str:
    """Return the instruction that made a layer, without what the builder puts around it."""
    text = re.sub(r"^/bin/sh -c #\(nop\)\s+", "", text)
    text = re.sub(r"^(RUN )?(\|\d+ .*?)?/bin/sh -c ", "RUN ", text)
    return " ".join(text.removesuffix("# buildkit").split())


class DiffView:
    """What is different between two revisions: one part after the other, additions in green."""

    _PARTS = ("source", "options", "requirements", "captured", "schema")

    def __init__(self, name: str, diff: Mapping[str, Any]) -> None:
        self._head = f"{name}: from revision {diff['from']} to {diff['to']}, which serves"
        self._parts = {part: diff[part] for part in self._PARTS if diff[part]}
        self._identical = diff["identical"]

    def _empty(self) -> str:
        alike = ", ".join(self._PARTS[:-1])
        if self._identical:
            return f"{alike} and schema are the same, and so is all else"
        return f"{alike} and schema are the same; the rest of the cell may have changed"

    def __repr__(self) -> str:
        parts = [f"{part}\n{text}" for part, text in self._parts.items()]
        return "\n\n".join([self._head, *(parts or [self._empty()])])

    def _repr_html_(self) -> str:
        parts = [
            f"<div>{part}</div><pre>{''.join(map(_diff_line, text.splitlines()))}</pre>"
            for part, text in self._parts.items()
        ]
        return f"<div><b>{_text(self._head)}</b>{''.join(parts) or _text(self._empty())}</div>"


def _diff_line(line: str) -> str:
    colour = {"+": _COLOURS["active"], "-": _COLOURS["failed"]}.get(line[:1], "inherit")
    return f"<span style='color:{colour}'>{_text(line)}</span>\n"


class ErrorView:
    """Errors of one type and place, with the newest one's input and traceback."""

    def __init__(self, error: dict[str, Any]) -> None:
        self._error = error

    def __repr__(self) -> str:
        e = self._error
        seen = f"first {_when(e['first_seen'])}, last {_when(e['last_seen'])}"
        return (
            f"{e['type']} at {e['place']}, counted {e['count']}: {seen}\n"
            f"request {e['request']}, revision {e['revision']}: {e['message']}\n"
            f"\ninput:\n{e['input']}\n\n{e['traceback']}".rstrip()
        )

    def _repr_html_(self) -> str:
        return f"<pre>{_text(self)}</pre>"


def _when(at: float) -> str:
    return time.strftime("%F %T", time.localtime(at))


def _shortly(at: float) -> str:
    """Return the time, with its date when that is not today's."""
    when = _when(at)
    date, _, clock = when.partition(" ")
    return clock if date == time.strftime("%F") else when


def log_line(line: dict[str, Any]) -> str:
    """Return a log line as one line of text.

    Of the request's id it has the end: ids of the queue begin with the time.
    """
    at = _shortly(line["at"]) if line["at"] else " " * 8
    request = f" {line['request'][-8:]}" if line["request"] else ""
    return f"{at} {line['runner'][:6]}{request} {line['level']:5} {line['message']}"


def _packages(progress: Progress) -> list[str]:
    return [f"image with {', '.join(progress.packages)}"] if progress.packages else []


def _steps(progress: Progress) -> Iterator[str]:
    return deploy_steps.lines(
        progress.steps[-_STEPS_SHOWN:] if progress.state == "deploying" else []
    )


def _state(app: dict[str, Any]) -> str:
    if app["deploying"]:
        return f"deploying revision {app['deploying']}"
    if app["crash_backoff"]:
        return "CRASH_BACKOFF"
    return "up" if app["runners"] else "scaled to zero"


def _origin(app: dict[str, Any], name: str) -> str:
    if name in app["scaled"]:
        return "scale"
    if name not in app["explicit"]:
        return "inherited" if name in app.get("inherited", ()) else ""
    return next((o for kind, o in _ORIGINS.items() if app["notebook"].startswith(kind)), "cell")


def _text(value: Any) -> str:
    return html.escape(str(value))
