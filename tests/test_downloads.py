"""What apps download: bounded, whole or not at all, from where they may; git repositories."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fal_notebook import toolkit
from fal_notebook.toolkit import guarded
from fal_notebook.toolkit.utils import download_utils


class Site(BaseHTTPRequestHandler):
    """Serves what the tests ask for, and notes what it was asked."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("authorization")))
        kind, _, rest = self.path[1:].partition("/")
        status = 302 if kind == "to" else 200
        self.send_response(status)
        if kind == "to":
            self.send_header("location", rest)
        if kind == "named":
            self.send_header("content-disposition", 'attachment; filename="../../evil.bin"')
        if kind != "endless":
            self.send_header("content-length", "9" if kind == "short" else "5")
        self.end_headers()
        self.wfile.write(b"x" * (3 * 1024 * 1024) if kind == "endless" else b"12345")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Any]:
    with started(type("Site", (Site,), {"asked": []})) as server:
        yield server


class started:  # noqa: N801
    """A server on a port of its own; its `url`, and what was `asked`."""

    def __init__(self, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.asked = getattr(handler, "asked", [])
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> started:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared storage of these tests."""
    monkeypatch.setenv("FAL_DATA_DIR", str(tmp_path / "data"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "data"


@pytest.fixture
def in_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_RUNNER_ID", "r1")
    monkeypatch.setenv("FAL_NOTEBOOK_URL", "http://127.0.0.1:9")


# --- files --------------------------------------------------------------------------------------
def test_a_name_never_leads_out_of_the_folder(site: Any, shared: Path) -> None:
    path = toolkit.download_file(f"{site.url}/named/x", "a")
    assert path == shared / "a" / "evil.bin"


def test_nothing_stays_of_what_is_too_large_or_ended_early(site: Any, shared: Path) -> None:
    with pytest.raises(toolkit.DownloadError, match="more than 1048576 bytes"):
        toolkit.download_file(f"{site.url}/endless", "a", filesize_limit=1)
    with pytest.raises(toolkit.DownloadError, match=r"5 of 9 bytes|4 more expected"):
        toolkit.download_file(f"{site.url}/short", "a")
    assert list((shared / "a").iterdir()) == []
    with pytest.raises(toolkit.DownloadError, match="larger than 3 bytes"):
        download_utils.read_url(f"{site.url}/x", 3)


def test_weights_are_downloaded_once_and_seen_whole(site: Any, shared: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(toolkit.download_model_weights, [f"{site.url}/w.bin"] * 4))
    assert {path.read_bytes() for path in paths} == {b"12345"}
    assert paths[0].name == "w.bin"
    before = len(site.asked)
    assert toolkit.download_model_weights(f"{site.url}/w.bin") == paths[0]
    assert len(site.asked) == before
    headers = {"Authorization": "Bearer t"}
    toolkit.download_model_weights(f"{site.url}/w.bin", force=True, request_headers=headers)
    assert site.asked[-1] == ("/w.bin", "Bearer t")


# --- where they may come from -------------------------------------------------------------------
PRIVATE = [
    "http://localhost:1/",
    "http://169.254.169.254/latest",
    "http://[::1]/",
    "http://10.0.0.1/",
]


@pytest.mark.usefixtures("in_runner")
@pytest.mark.parametrize("url", PRIVATE)
def test_a_runner_reads_no_private_address(url: str, shared: Path) -> None:
    with pytest.raises(toolkit.DownloadError, match=r"private address.*download_allow"):
        toolkit.download_file(url, "a")


@pytest.mark.usefixtures("in_runner")
def test_a_listed_host_may_be_read_but_leads_nowhere_else(
    site: Any, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(guarded.ALLOW, f"example.com, {site.host}")
    assert toolkit.download_file(f"{site.url}/x", "a").read_bytes() == b"12345"
    for target in (
        "http://localhost:1/",
        "http://169.254.169.254/",
        "ftp://a/b",
        "file:///etc/passwd",
    ):
        with pytest.raises(toolkit.DownloadError):
            toolkit.download_file(f"{site.url}/to/{target}", "a")
    assert not any(path.startswith("/etc") for path, _ in site.asked)


@pytest.mark.usefixtures("in_runner")
def test_a_runner_reads_its_gateways_files(
    site: Any, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_URL", site.url)
    assert toolkit.File(url=f"{site.url}/x").save(shared / "y").read_bytes() == b"12345"


def test_credentials_do_not_follow_a_redirect_to_another_origin(site: Any, shared: Path) -> None:
    with started(type("Other", (Site,), {"asked": []})) as other:
        headers = {"Authorization": "Bearer t"}
        url = f"{site.url}/to/{other.url}/x"
        toolkit.download_file(url, "a", request_headers=headers)
        assert (site.asked[-1][1], other.asked) == ("Bearer t", [("/x", None)])
        toolkit.download_file(f"{site.url}/to/{site.url}/x", "b", request_headers=headers)
        assert site.asked[-1] == ("/x", "Bearer t")


# --- repositories -------------------------------------------------------------------------------
def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URL of a repository with two commits, and the first of them."""
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q")
    (work / "cloned_module.py").write_text("VALUE = 1\n")
    git(work, "add", ".")
    git(work, "commit", "-qm", "one")
    first = git(work, "rev-parse", "HEAD")
    (work / "cloned_module.py").write_text("VALUE = 2\n")
    git(work, "commit", "-qam", "two")
    served = tmp_path / "served"
    git(tmp_path, "clone", "-q", "--bare", str(work), str(served / "repo.git"))
    git(served / "repo.git", "update-server-info")

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *_: Any) -> None:
            pass

    with started(Files) as server:
        yield f"{server.url}/repo.git", first


def test_a_repository_is_cloned_once_for_all_runners(
    repository: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, first = repository
    monkeypatch.setattr(sys, "path", list(sys.path))
    newest = toolkit.clone_repository(url, target_dir=tmp_path / "r", include_to_path=True)
    assert newest == tmp_path / "r" / "repo"
    assert (newest / "cloned_module.py").read_text() == "VALUE = 2\n"
    assert sys.path[0] == str(newest)
    old = toolkit.clone_repository(url, commit_hash=first, target_dir=tmp_path / "r")
    assert old.name == f"repo-{first[:8]}"
    assert (old / "cloned_module.py").read_text() == "VALUE = 1\n"
    (newest / "mine").touch()
    assert (toolkit.clone_repository(url, target_dir=tmp_path / "r") / "mine").exists()
    again = toolkit.clone_repository(url, target_dir=tmp_path / "r", force=True)
    assert not (again / "mine").exists()
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["repo", old.name]
    named = toolkit.clone_repository(url, target_dir=tmp_path / "r", repo_name="own")
    assert named.name == "own"
    with pytest.raises(toolkit.DownloadError, match=r"^git checkout failed: .*nope"):
        toolkit.clone_repository(url, commit_hash="nope", target_dir=tmp_path / "r")


def test_two_runners_may_clone_at_once(repository: tuple[str, str], tmp_path: Path) -> None:
    def clone(_: int) -> Path:
        return toolkit.clone_repository(repository[0], target_dir=tmp_path / "r", force=True)

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(clone, range(4)))
    assert [(path / "cloned_module.py").exists() for path in folders] == [True]
    assert os.listdir(tmp_path / "r") == ["repo"]


WRONG = {
    "{url}x": {},
    "{url}": {"commit_hash": "0" * 40},
    "--upload-pack=touch evil": {},
    "ext::sh -c touch% evil": {},
    "{url}/": {"repo_name": "../out"},
    "{url}?": {"commit_hash": "--force"},
}


@pytest.mark.parametrize("url", WRONG)
def test_what_cannot_be_cloned_is_one_error_and_leaves_nothing(
    url: str, repository: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(toolkit.DownloadError):
        toolkit.clone_repository(
            url.format(url=repository[0]), target_dir=tmp_path / "r", **WRONG[url]
        )
    assert not (tmp_path / "r").exists() or list((tmp_path / "r").iterdir()) == []
    assert not (tmp_path / "out").exists()
    assert not Path("evil").exists()
