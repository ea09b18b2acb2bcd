"""Files that an app takes along: which are packed, where they appear, what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from effects import effect_of, given
from serving import deployed, eventually, run_url

from fal_notebook import cli, exceptions, file_archive
from fal_notebook.app_files import pack
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import AppFilesError, OptionError
from fal_notebook.options import Options

READS = """
def reads(name: str) -> str:
    import pathlib
    path = pathlib.Path(name)
    return path.read_text() if path.exists() else "nothing"
"""
IMPORTS = "def imports() -> str:\n    import brought_along\n    return brought_along.SAYS"


def tree(root: Path, *files: str) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return str(root)


def packed(root: Path, *files: str, **more: Any) -> list[str]:
    return list(pack(Options(app_files=list(files), **more), str(root)).names)


# --- what is packed ---------------------------------------------------------------------------
def test_files_and_folders_are_packed_but_what_is_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", "d/b.txt", "d/__pycache__/c.pyc", "d/.env", "n.ipynb", "x.py", ".git/y")
    assert packed(tmp_path, "a.py", "d") == ["a.py", "d/b.txt"]
    assert packed(tmp_path, ".") == ["a.py", "d/b.txt", "x.py"]
    assert packed(tmp_path, ".", app_files_ignore=["^d/", r"\.py$"]) == [
        ".git/y",
        "n.ipynb",
    ]
    assert packed(tmp_path, "b.txt", app_files_context_dir="d") == ["b.txt"]
    assert packed(tmp_path / "d", "a.py", app_files_context_dir="..") == ["a.py"]
    assert packed(tmp_path, str(tmp_path / "a.py"), "./d/../a.py") == ["a.py"]


def test_links_that_leave_the_folder_are_left_out_and_others_are_files(tmp_path: Path) -> None:
    tree(tmp_path, "out.txt", "in/a.txt", "in/deep/b.txt")
    for name, target in {"out": "../out.txt", "b": "deep/b.txt", "loop": ".", "no": "x"}.items():
        (tmp_path / "in" / name).symlink_to(target)
    found = pack(Options(app_files=["."]), str(tmp_path / "in"))
    assert found.names == ("a.txt", "b", "deep/b.txt")
    with tarfile.open(fileobj=io.BytesIO(found.archive)) as archive:
        assert all(entry.isreg() for entry in archive)


def test_equal_files_are_packed_to_equal_bytes(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "1", "a", "b/c"), tree(tmp_path / "2", "b/c", "a")
    os.utime(Path(other, "a"), (1, 1))
    options = Options(app_files=["."])
    assert pack(options, one) == pack(options, other)


# --- what is refused --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("files", "more", "sentence"),
    [
        (["no.txt"], {}, r"names no.txt, which is not in .*; correct it"),
        (["../secret"], {}, r"names ../secret, which lies outside of .*; copy it there"),
        (["/etc/passwd"], {}, r"names /etc/passwd, which lies outside"),
        (["leaves"], {}, r"names leaves, which is a link that leaves .*; copy it there"),
        (["empty"], {}, r"names empty, of which nothing is copied"),
        (["a\0"], {}, r"names 'a\\x00', which no file can be called"),
        (["a.pyc"], {}, r"names a.pyc, .* change app_files_ignore"),
        (["a"], {"app_files_ignore": ["^a$"]}, r"names a, of which nothing"),
        (["large", "a"], {}, r"have 6 MB, above 5 MB; the largest of 2 files are large \(6 MB\)"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_sentence(
    files: list[str],
    more: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_archive, "MAX_ARCHIVE", 5_000_000)
    tree(tmp_path, "secret", "in/a", "in/a.pyc")
    root = tmp_path / "in"
    (root / "leaves").symlink_to("../secret")
    (root / "empty").mkdir()
    (root / "large").write_bytes(bytes(6_000_000))
    with pytest.raises(AppFilesError, match=f"^app_files {sentence}") as refused:
        packed(root, *files, **more)
    assert isinstance(refused.value, exceptions.AppFileUploadException)


def test_a_context_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"app_files_context_dir is .*/no, which is no folder"):
        packed(tmp_path, "a", app_files_context_dir="no")


def test_a_stored_secret_does_not_travel_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IN_APP_FILE", "a value of some length")
    cli.run(["secrets", "set", "IN_APP_FILE", "--from-env"], "fal-notebook")
    (tmp_path / "conf.ini").write_text("key = a value of some length")
    files = {"app_files": ["conf.ini"], "app_files_context_dir": str(tmp_path)}
    sentence = r"conf.ini of app_files holds .* IN_APP_FILE; leave it out with app_files_ignore"
    with pytest.raises(OptionError, match=sentence), deployed(READS, **files):
        pass
    cli.run(["secrets", "delete", "IN_APP_FILE"], "fal-notebook")


def test_a_dry_run_names_the_files(shell: Any, tmp_path: Path, capsys: Any) -> None:
    tree(tmp_path, *(f"{n}.txt" for n in range(7)))
    options = f"app_files=. app_files_context_dir={tmp_path} dry_run=true"
    shell.run(f"%%fal_function {options}\ndef reads() -> str:\n    return open('0.txt').read()\n")
    said = capsys.readouterr().out
    assert "note: app_files: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more" in said
    assert "reads the relative file" not in said


# --- what comes of it -------------------------------------------------------------------------
@effect_of("app_files", "app_files_context_dir")
def test_files_appear_in_the_working_folder(tmp_path: Path) -> None:
    tree(tmp_path, "d/b.txt")
    context = given(app_files_context_dir=str(tmp_path))
    files = given(app_files=["d"])
    with deployed(READS, **files, **(context if files else {})) as reads:
        assert reads("d/b.txt") == "d/b.txt"


@effect_of("app_files_ignore")
def test_files_that_a_pattern_fits_do_not_appear(tmp_path: Path) -> None:
    options = {"app_files": ["."], "app_files_context_dir": tree(tmp_path, "a.txt", "a.big")}
    with deployed(READS, **options, **given(app_files_ignore=[r"\.big$"])) as reads:
        assert (reads("a.txt"), reads("a.big")) == ("a.txt", "nothing")


@effect_of("app_files")
def test_a_module_among_them_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "brought_along.py").write_text("SAYS = 'hello'")
    options = given(app_files=["brought_along.py"])
    if options:
        options["app_files_context_dir"] = str(tmp_path)
    with deployed(IMPORTS, **options) as imports:
        assert imports() == "hello"


def test_a_changed_file_is_a_new_revision_and_an_equal_one_is_not(tmp_path: Path) -> None:
    options = {"app_files": ["a.txt"], "app_files_context_dir": tree(tmp_path, "a.txt", "b.txt")}
    with deployed(READS, **options) as reads:
        (tmp_path / "b.txt").write_text("not among them")
        os.utime(tmp_path / "a.txt", (1, 1))
        with deployed(READS, **options):
            assert reads.status()["number"] == 1
            (tmp_path / "a.txt").write_text("changed")
            with deployed(READS, **options):
                assert reads.status()["number"] == 2
                assert reads("a.txt") == "changed"


def blobs(state: Path) -> set[str]:
    return {path.name for path in (state / "blobs").glob("*")}


def test_files_go_with_the_app(private_state: Path, tmp_path: Path) -> None:
    before = blobs(private_state)
    options = {"app_files": ["a.txt"], "app_files_context_dir": tree(tmp_path, "a.txt")}
    with deployed(READS, **options) as reads:
        reads("a.txt")
        (runner,) = reads.runners()
        working = private_state / "runners" / runner["id"]
        assert (working / "a.txt").exists()
        assert len(blobs(private_state) - before) == 2
    eventually(lambda: not working.exists())
    assert blobs(private_state) == before


def test_a_server_of_the_users_own_has_them_too(gateway: GatewayInfo, tmp_path: Path) -> None:
    source = """
def serves(port: int) -> None:
    import http.server, brought_along
    handler = http.server.SimpleHTTPRequestHandler
    print(brought_along.SAYS)
    http.server.HTTPServer(("127.0.0.1", port), handler).serve_forever()
"""
    (tmp_path / "brought_along.py").write_text("SAYS = 'hello'")
    options = {"app_files": ["."], "app_files_context_dir": str(tmp_path), "auth": "public"}
    with deployed(source, exposed_port=8124, **options) as serves:
        reply = httpx.get(run_url(gateway, serves) + "/brought_along.py")
        assert reply.text == "SAYS = 'hello'"
