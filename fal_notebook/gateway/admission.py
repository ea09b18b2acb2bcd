"""Who may call an app: the check that stands before both ``/run`` and ``/queue``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fal_notebook.exceptions import UnauthorizedError
from fal_notebook.gateway.auth import SEND_KEY, Auth, Principal, may_run
from fal_notebook.gateway.fleet import Fleet
from fal_notebook.gateway.headers import is_pickle

_WHY = {
    401: f"this app needs a key: {SEND_KEY}",
    403: "this key may not call this app",
}


class RefusedCallerError(Exception):
    """The caller goes no further. `status` says why to a program, the message to a person."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Admitted:
    """An app that may be called, and by whom; None for a caller without a key."""

    app: Fleet
    principal: Principal | None


class Admission:
    """Finds the app and recognises the caller.

    Parameters
    ----------
    find : callable
        Gives the fleet of an owner and a name that has an active revision, or None.
    """

    def __init__(self, find: Callable[[str, str], Fleet | None], auth: Auth) -> None:
        self._find = find
        self._auth = auth

    def admit(self, owner: bytes, name: bytes, headers: dict[bytes, bytes]) -> Admitted:
        """Return app and caller.

        Raises
        ------
        RefusedCallerError
            With the status to answer.
        """
        return self.let_in(*self.recognise(owner, name, headers), headers)

    def let_in(
        self, app: Fleet | None, principal: Principal | None, headers: dict[bytes, bytes]
    ) -> Admitted:
        """Return app and caller that were recognised, if the one may call the other.

        Raises
        ------
        RefusedCallerError
            With the status to answer.
        """
        if app is None:
            raise RefusedCallerError(404, "no such app")
        status = may_run(principal, app.owner, app.auth, app.serve)
        if status:
            raise RefusedCallerError(status, _WHY[status])
        if is_pickle(headers.get(b"content-type")) and not (principal and principal.sends_python):
            detail = "Python values are taken from the app's owner only; send JSON"
            raise RefusedCallerError(415, detail)
        return Admitted(app, principal)

    def recognise(
        self, owner: bytes, name: bytes, headers: dict[bytes, bytes]
    ) -> tuple[Fleet | None, Principal | None]:
        """Return the app, None when there is none, and the caller, who may not be let in.

        Raises
        ------
        RefusedCallerError
            When the caller's key is wrong.
        """
        app = self._find(owner.decode("latin-1"), name.decode("latin-1"))
        pickled = is_pickle(headers.get(b"content-type"))
        return app, self._identify(app, headers.get(b"authorization", b""), pickled)

    def _identify(self, app: Fleet | None, authorization: bytes, pickled: bool) -> Principal | None:
        """Return who calls; a wrong key is refused.

        Any other Authorization header of an app that is open to everybody is the app's own. But
        a pickle's is ours: a handle learns by the 401 that the gateway has a new token.
        """
        try:
            return self._auth.identify(authorization)
        except UnauthorizedError as error:
            is_open = app is not None and app.serve and app.auth == "public"
            is_key = authorization[:4].lower() == b"key "
            if is_open and not is_key and not pickled:
                return None
            raise RefusedCallerError(401, str(error)) from None
