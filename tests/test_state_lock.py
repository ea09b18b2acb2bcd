"""Who holds a state folder holds it alone, whatever is removed from it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from fal_notebook import state_lock


def test_one_holds_the_folder_until_it_lets_go(tmp_path: Path) -> None:
    held = state_lock.take(tmp_path)
    assert held is not None
    assert state_lock.take(tmp_path) is None
    assert not state_lock.wait_until_free(tmp_path)
    os.close(held)
    assert state_lock.wait_until_free(tmp_path)
    assert os.listdir(tmp_path) == []


def test_one_that_lets_go_in_time_is_waited_for(tmp_path: Path) -> None:
    held = state_lock.take(tmp_path)
    assert held is not None
    timer = threading.Timer(0.1, os.close, (held,))
    timer.start()
    assert state_lock.wait_until_free(tmp_path, 20)
    timer.join()


def test_where_folders_cannot_be_locked_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_nfs(descriptor: int, how: int) -> Any:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "as NFS answers for what is open for reading only")
        return real(descriptor, how)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", as_nfs)
    held = state_lock.take(tmp_path)
    assert held is not None
    assert state_lock.take(tmp_path) is None
    assert state_lock.is_on(held, tmp_path)
    assert not state_lock.is_on(held, tmp_path / "gone")
    os.close(held)
    assert state_lock.wait_until_free(tmp_path)
    assert stat.S_IMODE((tmp_path / "gateway.lock").stat().st_mode) == 0o600
