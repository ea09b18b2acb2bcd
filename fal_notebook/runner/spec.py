"""What a runner is told when it starts; it comes over a pipe, never over a command line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields

# What the gateway itself wants of a runner: ``states``, ``end``, and of one request ``cancel``, or
# ``close REASON``, which is answered when the request has ended. A header and no path, because
# callers choose the path of what is forwarded, but can set no x-fal- header.
LINK = b"x-fal-link"
# The header with the secret of the runner, in every request of the gateway.
SECRET = b"x-fal-runner-secret"
# Where runners see the shared storage, unless they are told of other places.
DATA = "/data"
# An answer with it is of a failure that the gateway has been told of.
TOLD = b"x-fal-error-told"


@dataclass(frozen=True)
class RunnerSpec:
    """Everything one runner needs.

    Parameters
    ----------
    runner_id : str
        Names the runner in logs and events.
    secret : str
        Every request must carry it in ``x-fal-runner-secret``.
    address : str
        Where it listens, ``unix:PATH`` or ``tcp:HOST:PORT``.
    state : str
        The state folder, locked by the gateway while there is one; empty in a container.
    payload : str
        Path of the payload file.
    log : str
        File that receives its output; empty in a container, whose engine takes its output.
    folder : str
        Its working folder; empty in a container, whose image says it.
    environment : dict
        Its whole environment; nothing else is inherited. In a container it is added to the image's.
    secrets : list of str
        Which of these variables hold secrets: errors that are shown do not.
    max_multiplexing : int
        Requests that run at the same time; sync ones get a thread each.
    orphan_timeout : float
        Seconds without a gateway after which it drains and ends.
    grace : float
        Seconds that it has to end, once it was told to.
    exposed_port : int or None
        The port that a server of the user's own says it listens on; None without such a server.
    fixed_port : bool
        That server is known to listen there, whatever ``$PORT`` says: one runner at a time.
    umask : int
        Which rights its new files lack.
    data_mounts : list of str
        Where it sees the shared storage, the folder that ``FAL_DATA_DIR`` names.
    app_files : str
        Path of an archive that is unpacked into its working folder; empty without one.
    """

    runner_id: str
    secret: str
    address: str
    state: str
    payload: str
    log: str
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    max_multiplexing: int = 1
    orphan_timeout: float = 60.0
    grace: float = 5.0
    exposed_port: int | None = None
    fixed_port: bool = False
    umask: int = 0o077
    data_mounts: list[str] = field(default_factory=lambda: [DATA])
    app_files: str = ""

    @property
    def ending(self) -> str:
        """Return the file that gets the exit status of a runner that has ended."""
        return os.path.join(self.folder, ".exit-status")

    def to_json(self) -> str:
        """Return the one-line form that travels over the pipe."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> RunnerSpec:
        """Read the one-line form; a gateway of a later version may say more than is known here."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in json.loads(line).items() if name in known})
