"""URLs and repositories on their way into files: http, https and data URLs, git over https."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request

from fal_notebook.toolkit.exceptions import DownloadError
from fal_notebook.toolkit.folders import FAL_MODEL_WEIGHTS_DIR, FAL_REPOSITORY_DIR, data_folder
from fal_notebook.toolkit.folders import FAL_PERSISTENT_DIR as FAL_PERSISTENT_DIR
from fal_notebook.toolkit.guarded import opener

_CHUNK = 1024 * 1024
_STORED = "/storage/files/"
_AGENT = {"User-Agent": "Mozilla/5.0 (compatible; fal_notebook)"}


def download_file(
    url: str,
    target_dir: str | Path,
    *,
    force: bool = False,
    request_headers: dict[str, str] | None = None,
    filesize_limit: int | None = None,
) -> Path:
    """Download a URL into a folder, a relative one below the shared storage; return the file.

    Parameters
    ----------
    force : bool
        Also when a file of that name and length is there.
    filesize_limit : int, optional
        In MiB.

    Raises
    ------
    DownloadError
        When it cannot be read, is too large, or belongs outside of the shared storage; nothing of
        it stays.
    """
    folder = _below_data(Path(target_dir))
    with _opened(url, request_headers) as response:
        length = int(response.headers.get("content-length") or -1)
        limit = None if filesize_limit is None else filesize_limit * _CHUNK
        target = folder / _file_name(url, response.headers)
        if not force and target.exists() and target.stat().st_size == length:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        _write(response, target, length, limit)
    return target


def _below_data(folder: Path) -> Path:
    if folder.is_absolute():
        return folder
    data = Path(os.path.normpath(data_folder()))
    found = Path(os.path.normpath(data / folder))
    if data not in (found, *found.parents):
        raise DownloadError(f"{folder} lies outside of {data}; give it as an absolute path")
    return found


def read_url(url: str, limit: int) -> bytes:
    """Return the content of a URL, at most `limit` bytes."""
    with _opened(url, None) as response:
        content: bytes = response.read(limit + 1)
    if len(content) > limit:
        raise DownloadError(f"{_short(url)} is larger than {limit} bytes")
    return content


def download_model_weights(
    url: str, force: bool = False, request_headers: dict[str, str] | None = None
) -> Path:
    """Download weights once for all runners of the account; return the file."""
    folder = FAL_MODEL_WEIGHTS_DIR / hashlib.sha256(url.encode()).hexdigest()
    there = [] if force or not folder.is_dir() else [p for p in folder.iterdir() if p.is_file()]
    done = [path for path in there if not path.name.endswith(".part")]
    if done:
        return done[0]
    return download_file(url, folder, force=force, request_headers=request_headers)


def clone_repository(
    https_url: str,
    *,
    commit_hash: str | None = None,
    target_dir: str | Path | None = None,
    repo_name: str | None = None,
    force: bool = False,
    include_to_path: bool = False,
) -> Path:
    """Clone a git repository once for all runners; return its folder.

    Parameters
    ----------
    commit_hash : str, optional
        The commit to have; by default the newest.
    target_dir, repo_name : optional
        Its parent folder and name, which otherwise follow from URL and commit.
    include_to_path : bool
        Put it first on ``sys.path``.

    Raises
    ------
    DownloadError
        With what git says; nothing of it stays.
    """
    name = repo_name or re.sub(r"\.git$", "", https_url.rstrip("/").rsplit("/", 1)[-1])
    name += f"-{commit_hash[:8]}" if commit_hash and repo_name is None else ""
    if name != Path(name).name or name in ("", ".", "..") or (commit_hash or "").startswith("-"):
        raise DownloadError(
            f"{name!r} is no folder's name, or {commit_hash!r} no commit; give both"
        )
    folder = Path(target_dir or FAL_REPOSITORY_DIR) / name
    if force or not folder.exists():
        _clone(https_url, commit_hash, folder)
    if include_to_path and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def _clone(url: str, commit: str | None, folder: Path) -> None:
    """Clone beside the folder and rename, so that no runner sees half a repository."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        _git("clone", "--recursive", "--", url, str(made))
        if commit is not None:
            _git("checkout", commit, "--", folder=made)
        with suppress(FileNotFoundError):
            folder.rename(Path(temporary) / ".before")
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise  # else another runner was faster, and what it made is as good


def _git(*arguments: str, folder: Path | None = None) -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise DownloadError(f"git {arguments[0]} failed: {done.stderr.strip()[-500:]}")


@contextmanager
def _opened(url: str, headers: dict[str, str] | None) -> Iterator[Any]:
    if urlsplit(url).scheme not in ("http", "https", "data"):
        raise DownloadError(f"{_short(url)} is no http, https or data URL")
    try:
        request = Request(_reachable(url), headers={**_AGENT, **(headers or {})})
        with opener().open(request, timeout=60) as response:
            yield response
    except (OSError, ValueError, HTTPException) as error:
        raise DownloadError(f"{_short(url)} cannot be downloaded: {error}") from error


def _reachable(url: str) -> str:
    """Return a URL of the storage as this runner reaches it: a container has its own loopback."""
    parts = urlsplit(url)
    stored = parts.hostname in ("127.0.0.1", "localhost") and parts.path.startswith(_STORED)
    if not stored or "FAL_RUNNER_ID" not in os.environ:
        return url
    return f"{os.environ['FAL_NOTEBOOK_URL']}{parts.path}{'?' if parts.query else ''}{parts.query}"


def _write(response: Any, target: Path, length: int, limit: int | None) -> None:
    """Write to a file beside the target and rename it: other runners see all of it or nothing."""
    if limit is not None and length > limit:
        raise DownloadError(f"the file has {length} bytes, more than {limit}")
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                if limit is not None and file.tell() > limit:
                    raise DownloadError(f"the file has more than {limit} bytes")
            if 0 <= length != file.tell():
                raise DownloadError(f"the file ended after {file.tell()} of {length} bytes")
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _file_name(url: str, headers: Any) -> str:
    message = Message()
    message["content-disposition"] = headers.get("content-disposition") or "inline"
    own = message.get_filename() or unquote(urlsplit(url).path if url[:5] != "data:" else "")
    name = Path(own).name
    return name if name not in ("", ".", "..") else hashlib.sha256(url.encode()).hexdigest()


def _short(url: str) -> str:
    return url if len(url) <= 200 else f"{url[:60]}…"
