"""Options: what is accepted, what each refusal says, what is stored and listed."""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook import cli
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.gateway.queue.retry import ATTEMPTS
from fal_notebook.options import (
    SCALING,
    CellOptions,
    HealthCheck,
    Options,
    RetryConfig,
    app_name,
    explicit,
    help_text,
    option_help,
    parse_options,
    parse_scaling,
    split_options,
    with_absolute_paths,
)

IMAGE = ContainerImage.from_dockerfile_str("FROM python:3.11-slim")
SECONDS = "a whole number of seconds, 0 or more, a billion at most"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"keep_alives": 1}, "unknown option 'keep_alives'; did you mean 'keep_alive'?"),
    ({"force_env_biuld": True}, "did you mean 'force_env_build'?"),
    ({"zzz": 1}, "unknown option 'zzz'; there are app_files,"),
    ({"keep_alive": -1}, f"keep_alive=-1 is not allowed: {SECONDS}"),
    ({"keep_alive": True}, f"keep_alive=True is not allowed: {SECONDS}"),
    ({"keep_alive": 1.5}, f"keep_alive=1.5 is not allowed: {SECONDS}"),
    ({"keep_alive": "10"}, f"keep_alive='10' is not allowed: {SECONDS}"),
    ({"keep_alive": None}, f"keep_alive=None is not allowed: {SECONDS}"),
    ({"max_concurrency": 0}, "max_concurrency=0 is not allowed: a whole number from 1 to 1000"),
    ({"min_concurrency": 100_000}, "min_concurrency=100000 is not allowed: a whole number from 0"),
    ({"concurrency_buffer": 1001}, "concurrency_buffer=1001 is not allowed"),
    ({"max_multiplexing": 0}, "max_multiplexing=0 is not allowed"),
    ({"concurrency_buffer": -1}, "concurrency_buffer=-1 is not allowed"),
    ({"concurrency_buffer_perc": "5%"}, "concurrency_buffer_perc='5%' is not allowed: a whole"),
    ({"scaling_delay": -1}, "scaling_delay=-1 is not allowed"),
    ({"request_timeout": 0}, "request_timeout=0 is not allowed: a whole number of seconds, 1 or"),
    ({"startup_timeout": 0}, "startup_timeout=0 is not allowed"),
    ({"request_start_timeout": -1}, "request_start_timeout=-1 is not allowed"),
    ({"termination_grace_period_seconds": -1}, "termination_grace_period_seconds=-1 is not"),
    ({"num_gpus": 9}, "num_gpus=9 is not allowed: a whole number from 1 to 8"),
    ({"exposed_port": 65536}, "exposed_port=65536 is not allowed: a whole number from 1 to 65535"),
    ({"metrics_port": 0}, "metrics_port=0 is not allowed"),
    ({"serve": 1}, "serve=1 is not allowed: true or false"),
    ({"serve": "yes"}, "serve='yes' is not allowed: true or false"),
    ({"private_logs": "no"}, "private_logs='no' is not allowed"),
    ({"force_env_build": 3}, "force=3 is not allowed: true or false"),
    ({"compile_bytecode": 0}, "compile_bytecode=0 is not allowed"),
    ({"app_scale_settings": "a"}, "app_scale_settings='a' is not allowed"),
    ({"auth": "secret"}, "auth='secret' is not allowed: private, public or shared"),
    ({"kind": "conda"}, "kind='conda' is not allowed: conda environments exist in fal"),
    ({"kind": "vm"}, "kind='vm' is not allowed: virtualenv or container"),
    ({"deployment_strategy": "blue"}, "deployment_strategy='blue' is not allowed: rolling or"),
    ({"regions": ["mars"]}, "regions=['mars'] is not allowed: a list of us-west"),
    ({"regions": []}, "regions=[] is not allowed: a list of us-west"),
    ({"regions": ["us-eastt"]}, "eu-west; did you mean 'us-east'?"),
    ({"skip_retry_conditions": ["timeouts"]}, "connection_error; did you mean 'timeout'?"),
    ({"auth": "privat"}, "private, public or shared; did you mean 'private'?"),
    ({"machine_type": []}, "machine_type=[] is not allowed: a name such as XS"),
    ({"machine_type": ""}, "machine_type='' is not allowed"),
    ({"machine_type": 4}, "machine_type=4 is not allowed"),
    ({"name": "_predict"}, "name='_predict' is not allowed: letters a to z"),
    ({"name": "my app"}, "name='my app' is not allowed"),
    ({"name": "größe"}, "name='größe' is not allowed"),
    ({"team": "a/b"}, "team='a/b' is not allowed: lower-case letters"),
    ({"message": 3}, "message=3 is not allowed: text"),
    ({"python_version": 3.11}, "python_version=3.11 is not allowed: text such as '3.11'"),
    ({"python_version": "3"}, "python_version='3' is not allowed"),
    ({"python_version": "3.11.2"}, "python_version='3.11.2' is not allowed"),
    ({"requirements": "numpy"}, "requirements='numpy' is not allowed: a list of requirements"),
    ({"requirements": ["numpy 2"]}, "'numpy 2' is no requirement such as 'numpy>=2' (Expected"),
    ({"requirements": [["numpy"], ["=="]]}, "'==' is no requirement"),
    ({"requirements": [""]}, "'' is no requirement"),
    ({"requirements": ["a", ["b"]]}, "a list of requirements, or a list of such lists (layers)"),
    ({"requirements": [3]}, "requirements=[3] is not allowed"),
    ({"local_python_modules": ["a-b"]}, "local_python_modules=['a-b'] is not allowed: a list"),
    ({"pass_env": ["A=1"]}, "pass_env=['A=1'] is not allowed: a list of names"),
    ({"secrets": ["TOKEN=abc"]}, "secrets is not allowed: a list of names, never values"),
    ({"data_mounts": ["data"]}, "data_mounts=['data'] is not allowed: a list of absolute paths"),
    ({"app_files": [""]}, "app_files=[''] is not allowed: a list of paths"),
    ({"app_files": ["a"], "app_files_ignore": ["("]}, "'(' is no regular expression"),
    ({"setup_function": 3}, "setup_function=3 is not allowed: a function of the notebook"),
    ({"keep_alive": 10**400}, f"is not allowed: {SECONDS}"),
    ({"startup_timeout": 10**9 + 1}, "startup_timeout=1000000001 is not allowed: a whole number"),
    ({"metadata": [1]}, "metadata=[1] is not allowed: a dict of JSON values"),
    (
        {"metadata": {"a": {1}}},
        "metadata is not allowed: it must be JSON, at most 250 levels deep (Obj",
    ),
    ({"metadata": {"a": float("nan")}}, "metadata is not allowed: it must be JSON"),
    ({"metadata": functools.reduce(lambda d, _: {"a": d}, range(300), {})}, "it must be JSON"),
    ({"image": "a b"}, "image is not allowed: a ContainerImage, or a reference such as"),
    ({"image": {"dockerfile_str": "x"}}, "image is not allowed: ContainerImage: dockerfile_str"),
    ({"image": {1: 2}}, "image is not allowed: ContainerImage: unknown option '1'"),
    ({"health_check": {}}, "health_check={} is not allowed: path is missing; give HealthCheck"),
    ({"health_check": {"path": "x"}}, "health_check is not allowed: path='x', string should match"),
    (
        {"health_check": {"path": "/x", "timeout_seconds": -1}},
        "health_check is not allowed: timeout_seconds=-1, input should be greater than or equal",
    ),
    (
        {"health_check": {"pth": "/x"}},
        "there is no field 'pth' (did you mean 'path'?); give",
    ),
    ({"health_check": {1: 2}}, "health_check is not allowed: "),
    ({"skip_retry_conditions": ["x"]}, "a list of server_error, timeout, connection_error"),
    ({"retry_config": {}}, "retry_config={} is not allowed: at least one of server_error, time"),
    ({"retry_config": {"timeout": 2}}, "retry_config is not allowed: timeout=2, input should be"),
    (
        {"retry_config": {"timeout": {"retries": -2}}},
        "retry_config is not allowed: timeout.retries=-2, input should be greater than",
    ),
    (
        {"retry_config": {"timeouts": {"retries": 2}}},
        "not allowed: there is no field 'timeouts' (did you mean 'timeout'?); give a dict such as",
    ),
    (
        {"retry_config": {"foo": {"retries": 2}}},
        "retry_config is not allowed: there is no field 'foo'; give a dict such as",
    ),
    (
        {"retry_config": {"timeout": {"retrys": 2}}},
        "retry_config is not allowed: there is no field 'timeout.retrys' (did you mean 'retries'?)",
    ),
    ({"image": 3}, "image, an int, is not allowed: a ContainerImage, or a reference such as"),
    ({"metadata": {"openapi": 3}}, "metadata is not allowed: its openapi must be a dict, not 3"),
    # contradictions
    (
        {"min_concurrency": 3, "max_concurrency": 2},
        "min_concurrency=3 is above max_concurrency=2",
    ),
    ({"image": IMAGE, "requirements": ["a"]}, "image and requirements exclude each other"),
    ({"image": IMAGE, "app_files": ["a"]}, "image and app_files exclude each other"),
    ({"app_files_context_dir": "."}, "app_files_context_dir needs app_files"),
    ({"app_files_ignore": ["a"]}, "app_files_ignore needs app_files"),
    ({"kind": "container"}, "kind='container' needs image"),
    ({"kind": "virtualenv", "image": "a/b"}, "kind='virtualenv' and image exclude each other"),
    ({"force": True, "force_env_build": True}, "force_env_build and force are the same option"),
]
REFUSED_CELL: list[tuple[dict[str, Any], str]] = [
    ({"target": "k8s"}, "target='k8s' is not allowed: local or docker"),
    ({"wait": 1}, "wait=1 is not allowed: true or false"),
    ({"entry": "a.b"}, "entry='a.b' is not allowed: a function's name"),
    ({"owner": "a/b"}, "owner='a/b' is not allowed"),
    ({"allow_secret": "KEY"}, "allow_secret='KEY' is not allowed: a list of names"),
    ({"take_over": True}, "unknown option 'take_over'; did you mean 'takeover'?"),
    ({"keep_alives": 1}, "did you mean 'keep_alive'?"),
]


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda item: str(item)[:40])
def test_bad_input_is_refused_with_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        parse_options(values)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("values", "sentence"), REFUSED_CELL, ids=lambda item: str(item)[:40])
def test_bad_cell_options_are_refused_in_the_same_style(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError) as refusal:
        split_options(values)
    assert sentence in str(refusal.value)


def test_several_refusals_are_one_message() -> None:
    with pytest.raises(OptionError) as refusal:
        split_options({"keep_alives": 1, "min_concurrency": -1, "serve": 3, "wait": 3})
    assert str(refusal.value).count("; ") == 4  # the nearest name brings one of its own
    for name in ("keep_alives", "min_concurrency", "serve", "wait"):
        assert name in str(refusal.value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(OptionError) as refusal:
        parse_options({"keep_alive": "x" * 10_000})
    assert len(str(refusal.value)) < 200


def test_credentials_of_a_refused_image_are_not_shown() -> None:
    registries = {"ghcr.io": {"password": "hunter2"}}
    with pytest.raises(OptionError) as refusal:
        parse_options({"image": {"dockerfile_str": "FROM a", "registries": registries}})
    assert "registries is not allowed" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_defaults_are_those_of_a_function() -> None:
    options = Options()
    assert options.machine_type == "XS"
    assert options.keep_alive == 10
    assert (options.min_concurrency, options.max_concurrency) == (0, None)
    assert options.max_multiplexing == 1
    assert options.auth == "private"
    assert options.termination_grace_period_seconds == 5
    assert explicit(options) == {}


def test_every_option_is_accepted_and_survives_a_round_trip_through_json() -> None:
    values: dict[str, Any] = {
        "name": "My_App",
        "auth": "shared",
        "team": "research",
        "message": "first",
        "machine_type": ["GPU-A100", "L"],
        "num_gpus": 2,
        "regions": ["us-west", "eu-north"],
        "kind": "virtualenv",
        "requirements": [["numpy>=2,<3"], ["./wheels/a.whl", "b @ https://example.org/b.zip"]],
        "python_version": "3.11",
        "local_python_modules": ["helpers", "pkg.mod"],
        "force": True,
        "compile_bytecode": True,
        "pass_env": ["HF_HOME"],
        "secrets": ["HF_TOKEN"],
        "data_mounts": ["/data"],
        "app_files": ["weights"],
        "app_files_ignore": [r"\.pyc$"],
        "app_files_context_dir": ".",
        "keep_alive": 300,
        "min_concurrency": 1,
        "max_concurrency": 4,
        "max_multiplexing": 8,
        "concurrency_buffer": 1,
        "concurrency_buffer_perc": 150,
        "scaling_delay": 0,
        "app_scale_settings": True,
        "request_timeout": 60,
        "startup_timeout": 60,
        "request_start_timeout": 0,
        "termination_grace_period_seconds": 0,
        "health_check": {"path": "/health"},
        "skip_retry_conditions": ["timeout"],
        "retry_config": {"server_error": {"retries": 0}},
        "deployment_strategy": "recreate",
        "serve": True,
        "exposed_port": 8000,
        "metadata": {"openapi": {"openapi": "3.1.0"}},
        "metrics_port": 9000,
        "private_logs": True,
    }
    options = parse_options({**values, "setup_function": len})
    assert set(values) | {"setup_function", "image"} == set(Options.model_fields)
    stored = json.loads(json.dumps(explicit(options)))
    assert stored == {**values, "name": "my-app"}
    assert explicit(parse_options(stored)) == stored
    assert options.setup_function is len


def test_an_image_is_stored_without_its_credentials() -> None:
    image = ContainerImage.from_dockerfile_str(
        "FROM a", registries={"ghcr.io": {"username": "me", "password": "hunter2"}}
    )
    stored = explicit(parse_options({"image": image, "kind": "container"}))
    assert stored == {"image": {"dockerfile_str": "FROM a"}, "kind": "container"}
    assert parse_options(stored).image == ContainerImage("FROM a")


def test_force_env_build_is_force() -> None:
    assert explicit(parse_options({"force_env_build": True})) == {"force": True}


def test_models_and_dicts_are_both_taken() -> None:
    check = HealthCheck(path="/health")
    assert parse_options({"health_check": {"path": "/health"}}).health_check == check
    assert (check.start_period_seconds, check.timeout_seconds) == (30, 5)
    assert (check.failure_threshold, check.call_regularly) == (3, True)
    retries = RetryConfig.model_validate({"timeout": {"retries": 2}})
    assert parse_options({"retry_config": retries}).retry_config == retries


@pytest.mark.parametrize(
    "requirement",
    [
        "numpy",
        "pandas[excel]>=2,<3",
        "a; python_version<'3.12'",
        "a @ git+https://example.org/a",
        "git+ssh://git@example.org/a.git",
        "https://example.org/a.whl",
        ".",
        "..[extra]",
        "../lib[extra]",
        "/abs/lib",
        "~/lib",
        "dist/a-1.0.tar.gz",
    ],
)
def test_packages_paths_and_urls_are_requirements(requirement: str) -> None:
    assert parse_options({"requirements": [requirement]}).requirements == [requirement]


def test_local_requirements_become_absolute_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "here" / "pkg").mkdir(parents=True)
    given = [".", "./pkg[extra]", "../here", "numpy>=2", "git+https://example.org/a"]
    options = with_absolute_paths(parse_options({"requirements": given}), f"{tmp_path}/here")
    here = f"{tmp_path}/here"
    assert explicit(options)["requirements"] == [here, f"{here}/pkg[extra]", here, *given[3:]]


def test_a_local_requirement_that_is_not_there_is_refused(tmp_path: Path) -> None:
    options = parse_options({"requirements": [["./nowhere"]]})
    with pytest.raises(OptionError, match=r"\./nowhere, but .*/nowhere does not exist"):
        with_absolute_paths(options, str(tmp_path))


@pytest.mark.parametrize(
    "reference",
    [
        "python",
        "python:3.11-slim",
        "my-org/my-server:latest",
        "localhost:5000/a/b@sha256:" + 64 * "0",
    ],
)
def test_references_of_images_are_taken(reference: str) -> None:
    assert parse_options({"image": reference}).image == reference


@pytest.mark.parametrize(
    ("name", "slug"), [("My_App", "my-app"), ("a", "a"), ("7b-Chat", "7b-chat")]
)
def test_app_name_is_what_stands_in_urls(name: str, slug: str) -> None:
    assert app_name(name) == slug
    assert app_name(slug) == slug


@pytest.mark.parametrize("name", ["", "_a", "-a", "a b", "a/b", "ä", "a\n"])
def test_app_name_refuses_what_cannot_stand_in_a_url(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be the name of an app"):
        app_name(name)


def test_options_of_the_cell_are_parted_from_those_of_the_app() -> None:
    options, cell = split_options({"keep_alive": 5, "wait": True, "allow_secret": ["KEY"]})
    assert explicit(options) == {"keep_alive": 5}
    assert cell == CellOptions(wait=True, allow_secret=["KEY"])
    assert cell.target is None


def test_an_app_has_no_options_of_the_cell() -> None:
    with pytest.raises(OptionError, match="unknown option 'takeover'"):
        parse_options({"takeover": True})


def test_scaling_options_are_returned_with_their_values() -> None:
    values = {"keep_alive": 5, "max_concurrency": None, "regions": ["us-east"]}
    assert parse_scaling(values) == values
    assert set(Options.model_fields) >= SCALING


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"machine_type": "L"}, "machine_type cannot be changed while the app runs; set it in"),
        ({"wait": True}, "wait cannot be changed while the app runs"),
        ({"keep_aliv": 3}, "unknown option 'keep_aliv'; did you mean 'keep_alive'?"),
        ({"keep_alive": -3}, "keep_alive=-3 is not allowed"),
        ({"min_concurrency": 2, "max_concurrency": 1}, "min_concurrency=2 is above"),
    ],
)
def test_scaling_refuses_what_needs_a_deploy(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        parse_scaling(values)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "name", sorted((set(Options.model_fields) | set(CellOptions.model_fields)) - SCALING)
)
def test_scale_says_of_each_option_that_it_cannot_change_what_does(name: str) -> None:
    sentence = f"{name} cannot be changed while the app runs; set it in the cell and run"
    with pytest.raises(OptionError, match=sentence):
        parse_scaling({name: 1})
    with pytest.raises(OptionError, match=sentence):  # its value is not looked at
        cli.run(["scale", "app", f"--{name.replace('_', '-')}=$unknown"], "%fal")


def test_every_option_has_help() -> None:
    listed = {item.name: item for item in option_help()}
    assert set(listed) == set(Options.model_fields) | set(CellOptions.model_fields)
    assert all(item.help and item.type for item in listed.values())


def test_help_writes_types_as_one_would() -> None:
    listed = {item.name: item for item in option_help()}
    assert listed["machine_type"].type == "str | list[str]"
    assert listed["setup_function"].type == "callable"


def test_help_says_how_often_the_queue_retries_at_most() -> None:
    (help_of,) = [item.help for item in option_help() if item.name == "retry_config"]
    assert f"; {ATTEMPTS - 1} at most" in help_of


def test_help_text_lists_every_option_with_its_default() -> None:
    text = help_text()
    for item in option_help():
        assert f"{item.name}={item.default} " in text
    assert max(map(len, text.splitlines())) <= 110


def test_options_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Options().keep_alive = 3  # type: ignore[misc]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(Options.model_fields)) | st.text(), JSON))
def test_nothing_but_an_option_error_comes_out(values: dict[str, Any]) -> None:
    with suppress(OptionError):
        json.dumps(explicit(parse_options(values)))


@pytest.mark.parametrize(
    "values",
    [
        {"requirements": ["--index-url", "https://u:horse-battery@127.0.0.1:9/simple"]},
        {"requirements": ["--extra-index-url https://u:horse-battery@127.0.0.1:9/simple"]},
        {"keep_alive": "https://u:horse-battery@here"},
    ],
)
def test_a_refusal_shows_no_password(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refused:
        split_options(values)
    assert "horse" not in str(refused.value)
