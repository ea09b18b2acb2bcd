"""Settings: the environment, then config.toml, then the default; what is wrong is one sentence."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

import pytest

from fal_notebook import discovery, settings
from fal_notebook.exceptions import FalNotebookError, SettingError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("FAL_NOTEBOOK_CONFIG", str(path))
    monkeypatch.delenv("FAL_NOTEBOOK_OWNER", raising=False)
    return path


def test_the_environment_wins_over_the_file_and_that_over_the_default(config, monkeypatch) -> None:
    assert settings.setting("port", 7) == 7
    config.write_text("port = 8")
    assert settings.setting("port", 7) == 8
    monkeypatch.setenv("FAL_NOTEBOOK_PORT", "9")
    assert settings.setting("port", 7) == 9


def test_a_value_of_the_wrong_type_is_named_with_its_place(config, monkeypatch) -> None:
    config.write_text("port = 'high'")
    with pytest.raises(SettingError, match=r"port in .*config.toml is 'high', .* a whole number"):
        settings.setting("port", 0)
    monkeypatch.setenv("FAL_NOTEBOOK_PORT", "8o8o")
    with pytest.raises(SettingError, match=r"FAL_NOTEBOOK_PORT is '8o8o', .* a whole number"):
        settings.setting("port", 0)


def test_what_is_no_setting_is_refused_with_the_nearest(config) -> None:
    config.write_text("max_bodi = 5")
    with pytest.raises(SettingError, match="holds max_bodi, which is no setting; there is max_bod"):
        settings.setting("port", 0)


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| setting | means |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(settings.NAMES)


def test_a_limit_that_would_refuse_everything_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    monkeypatch.setenv("FAL_NOTEBOOK_MAX_BODY", "-1")
    with pytest.raises(FalNotebookError, match="FAL_NOTEBOOK_MAX_BODY is -1, which is below 1"):
        discovery.ensure(tmp_path)


def test_a_file_that_is_no_toml_is_named(config) -> None:
    config.write_text("port =")
    with pytest.raises(SettingError, match=r"config\.toml cannot be read"):
        settings.setting("port", 0)


@pytest.mark.parametrize(
    ("user", "owner"), [("Ada Lovelace", "ada-lovelace"), ("ß", "user"), ("a_b", "a-b")]
)
def test_the_name_of_a_user_is_made_fit_for_a_url(config, monkeypatch, user, owner) -> None:
    monkeypatch.setenv("LOGNAME", user)
    assert settings.owner() == owner


@pytest.mark.parametrize("given", ["Ada Lovelace", "a_b", "-a", "ß", "a" * 64, "a/b"])
def test_an_owner_that_is_no_name_is_refused(config, monkeypatch, given: str) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_OWNER", given)
    with pytest.raises(SettingError, match=re.escape(f"owner is {given!r}; write lower-case")):
        settings.owner()


def test_the_owner_is_the_user_even_without_an_entry_in_passwd(config, monkeypatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert settings.owner() == getpass.getuser().lower()
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert settings.owner() == "user-54321"


def test_a_state_folder_is_private_and_one_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path / "new"))
    assert settings.state_folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(SettingError, match=r"the state folder .* cannot be made"):
        settings.state_folder()


def test_a_target_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_TARGET", "moon")
    with pytest.raises(SettingError, match="'moon', which is none of local, docker"):
        settings.target()


def test_a_setting_that_is_true_or_false_is_one_of_these(config, monkeypatch) -> None:
    config.write_text("docker_read_only = true\n")
    assert settings.setting("docker_read_only", False) is True
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_READ_ONLY", "False")
    assert settings.setting("docker_read_only", True) is False
    monkeypatch.setenv("FAL_NOTEBOOK_DOCKER_READ_ONLY", "1")
    with pytest.raises(SettingError, match="'1', which is not true or false"):
        settings.setting("docker_read_only", False)
