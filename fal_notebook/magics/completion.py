"""Tab on the lines of our magics: which line is ours; what fits its last word is said elsewhere.

The body of a cell and all other lines are left to Python's own completion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher

# What the options need takes a third of a second to import: that is for the first Tab.
if TYPE_CHECKING:
    from fal_notebook.magics.candidates import Found
    from fal_notebook.magics.gateway_names import GatewayNames
    from fal_notebook.magics.values import Place

_IDENTIFIER = "fal_notebook"
_CELL = re.compile(r"\s*%%fal_(function|app|server|pyproject)[ \t]+")
_LINE = re.compile(r"\s*(?:[\w., ]+=\s*)?%fal[ \t]+")


def register(shell: Any) -> None:
    """Complete the lines of our magics in a shell."""
    unregister(shell)
    matcher = Matcher(shell)

    def complete(context: CompletionContext) -> dict[str, Any]:
        return matcher.complete(context)

    # Asked before all others, for those need not be asked when something of ours fits.
    first = context_matcher(identifier=_IDENTIFIER, priority=1000)
    shell.Completer.custom_matchers.append(first(complete))


def unregister(shell: Any) -> None:
    """Complete them no longer."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != _IDENTIFIER]


class Matcher:
    """What completes the lines of one shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def complete(self, context: CompletionContext) -> dict[str, Any]:
        """Return what fits the word before the cursor if its line is one of ours."""
        found = self._found(context)
        if found is None:
            return {"completions": []}
        texts = [SimpleCompletion(text, type=kind) for text, kind in found.texts.items()]
        return {
            "completions": texts or _Nothing(),
            "matched_fragment": found.fragment,
            "ordered": True,
            "suppress": True,
        }

    def _found(self, context: CompletionContext) -> Found | None:
        text = context.text_until_cursor
        if match := _LINE.match(text):
            from fal_notebook.magics.commands import fal_line

            return fal_line(text[match.end() :], self._place(context))
        match = _CELL.match(text)
        if match and not "".join(_lines(context)[: context.cursor_line]).strip():
            from fal_notebook.magics.candidates import cell_line, server_line, toml_line

            of_cell = {"server": server_line, "pyproject": toml_line}
            line = of_cell.get(match[1], cell_line)
            return line(text[match.end() :], self._place(context))
        return None

    def _place(self, context: CompletionContext) -> Place:
        from fal_notebook.magics.values import Place

        return Place(
            variables=_visible(self._shell),
            body="\n".join(_lines(context)[context.cursor_line + 1 :]),
            following=context.line_with_cursor[context.cursor_position :][:1],
            names=self._names,
        )

    @cached_property
    def _names(self) -> GatewayNames:
        from fal_notebook.magics.gateway_names import GatewayNames

        return GatewayNames()


class _Nothing:
    """No completions, in a number that keeps the other matchers from guessing all the same."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[SimpleCompletion]:
        return iter(())


def _lines(context: CompletionContext) -> list[str]:
    return context.full_text.split("\n")


def _visible(shell: Any) -> dict[str, Any]:
    hidden = shell.user_ns_hidden
    return {
        name: value
        for name, value in shell.user_ns.items()
        if not name.startswith("_") and name not in hidden
    }
