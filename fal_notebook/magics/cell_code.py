"""The code of a cell below its magic line: analysed, then run as a cell without magic runs."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from fal_notebook import cell as cells


class CellSyntaxError(Exception):
    """Python's own syntax error of the cell, shown as in a cell without magic: no frames.

    It is none to Python: of a SyntaxError the shell would print how it was reached, through us.
    """

    def __init__(self, shell: Any, error: SyntaxError) -> None:
        super().__init__(str(error))
        self._shell = shell
        self._error = error

    def _render_traceback_(self) -> list[str]:
        shown: list[str] = self._shell.SyntaxTB.structured_traceback(
            type(self._error), self._error, []
        )
        return shown


CellSyntaxError.__name__ = "SyntaxError"  # what front ends say it is


class CellCode:
    """Plain Python of a cell, on the lines that it has in the notebook (line 1 is the magic's)."""

    def __init__(self, shell: Any, cell: str) -> None:
        self._shell = shell
        blank = sum(1 for _ in takewhile(lambda line: not line.strip(), cell.splitlines()))
        self._source: str = "\n" * (1 + blank) + shell.transform_cell(cell)
        # Under this name tracebacks find the lines, and call it "Cell In[3]".
        self._name: str = shell.compile.cache(self._source, shell.execution_count)

    def entry(self, wanted: str | None) -> str:
        """Return the name of the function to deploy.

        Raises
        ------
        CellSyntaxError
            Shown as Python's own, with the line in the notebook's cell.
        CellError
            When there is no such function.
        """
        with self._syntax_errors():
            return cells.analyse(self._source, wanted).entry

    def classes(self) -> tuple[str, ...]:
        """Return the names of the cell's classes; errors as of `entry`."""
        with self._syntax_errors():
            return cells.classes(self._source)

    def defined(self) -> set[str]:
        """Return the names that the code binds in the notebook; errors as of `entry`."""
        with self._syntax_errors():
            symbols = symtable.symtable(self._source, self._name, "exec").get_symbols()
        return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}

    @contextmanager
    def _syntax_errors(self) -> Iterator[None]:
        try:
            yield
        except SyntaxError as error:
            error.filename = self._name
            raise CellSyntaxError(self._shell, error) from None

    @property
    def source(self) -> str:
        """The code as Python, on its lines."""
        return self._source

    def run(self) -> None:
        """Execute the code in the notebook's namespace; show the value of a last expression.

        Errors leave as they are, so that the notebook shows the ordinary traceback. (The shell's
        own run_cell would show them too, but report the outer cell as successful.)
        """
        __tracebackhide__ = True
        shell = self._shell
        tree = shell.transform_ast(ast.parse(self._source, self._name))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        code = shell.compile(tree, self._name, "exec")
        exec(code, shell.user_global_ns, shell.user_ns)
        if last is not None:
            expression = shell.compile(ast.Expression(last.value), self._name, "eval")
            value = eval(expression, shell.user_global_ns, shell.user_ns)
            if value is not None and not self._source.rstrip().endswith(";"):
                shell.displayhook(value)
