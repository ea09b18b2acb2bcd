"""What fal has here is left out; who imports it is told so."""

from fal_notebook.exceptions import OutOfScopeError

raise OutOfScopeError("toolkit.constraints")
