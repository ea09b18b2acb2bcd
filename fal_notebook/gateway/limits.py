"""What a caller may send, hold and delay before it is let go: every such limit in one place.

How large a body may be is a setting (``max_body``, ``max_upload``, ``storage_quota``), how long an
app may work one of its options (``request_timeout``).
"""

from __future__ import annotations

import contextlib
import resource

# A head (request line and headers) has at most so many bytes (431; 414 where the line has most of
# them: RFC 6585, RFC 9110) and is whole after so many seconds (408).
HEAD = 64 * 1024
HEAD_TIME = 30.0
# A connection between two requests is kept for so many seconds.
IDLE_TIME = 75
# A body that the gateway reads before anything is done with it may stop for so many seconds (408).
BODY_STALL = 30.0
# And it comes at no less than so many bytes a second: each so many give back one second of those.
# IIS and Kestrel ask for as much; a telephone on the slowest network (GPRS) has ten times that.
BODY_RATE = 240
# Who is answered may go on sending for so many seconds; then its connection is closed.
LINGER = 2.0
# An answer of the gateway's own that nobody reads is given up after so many seconds.
READ_STALL = 120.0
# The gateway opens so many files, where the system lets it.
_FILES = 16384


def raise_files() -> None:
    """Let this process open more files than the usual 1024, and so hold more connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def silent() -> int:
    """Return how many connections may be silent: half of the files that may be open.

    Of more that have sent no request, or have their answer, the one that is longest so makes room.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _FILES // 2 if files == resource.RLIM_INFINITY else files // 2
