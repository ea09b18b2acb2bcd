"""Run the source of a cell in the notebook's namespace, as a cell without magic runs."""

from __future__ import annotations

import ast
from typing import Any


def run_cell(shell: Any, source: str) -> None:
    """Execute plain Python `source`; show the value of a last expression.

    Errors leave as they are, so that the notebook shows the ordinary traceback with the cell's
    own lines. (`shell.run_cell` would show them too, but report the outer cell as successful.)
    """
    __tracebackhide__ = True
    name = shell.compile.cache(source, shell.execution_count)
    tree = shell.transform_ast(ast.parse(source, name))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(shell.compile(tree, name, "exec"), shell.user_global_ns, shell.user_ns)
    if last is not None:
        expression = ast.Expression(last.value)
        value = eval(shell.compile(expression, name, "eval"), shell.user_global_ns, shell.user_ns)
        if value is not None and not source.rstrip().endswith(";"):
            shell.displayhook(value)
