"""Deploys by Python: what a cell's magic does, a program does too."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import defined, deleted_after

import fal_notebook
from fal_notebook.deploying import dry_run
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import ConflictError, DeployError, OptionError
from fal_notebook.handle import Handle
from fal_notebook.options import split_options


@pytest.fixture(autouse=True)
def deleted(gateway: GatewayInfo) -> Iterator[None]:
    with deleted_after("double", "table", "first"):
        yield


def _double() -> Callable[[int], int]:
    def double(x: int) -> int:
        return 2 * x

    return double


# A function of a module would be imported by the runner; one of a function goes by value.
double = _double()


def test_a_function_is_deployed_with_the_options_of_a_cell() -> None:
    handle = fal_notebook.deploy(double, keep_alive=7, wait=True)
    assert handle(4) == 8
    assert handle.local(5) == 10
    assert handle.status()["options"]["keep_alive"] == 7


def test_the_function_deploys_also_when_its_module_has_been_imported() -> None:
    import fal_notebook.deploying

    assert callable(fal_notebook.deploy)


def test_a_handle_is_refused_as_its_options_would_be_lost_and_its_original_is_not() -> None:
    handle = fal_notebook.deploy(double, keep_alive=7, wait=True)
    with pytest.raises(OptionError, match=r"run its cell again, .*deploy\(handle\.original, …\)"):
        fal_notebook.deploy(handle)
    again = fal_notebook.deploy(handle.original, keep_alive=7, wait=True)
    assert again.status()["revision"] == handle.status()["revision"]


def test_the_repr_says_whether_anything_runs_after_a_failed_deploy() -> None:
    def load() -> None:
        raise ValueError("no weights")

    first = fal_notebook.deploy(double, name="first", setup_function=load)
    with pytest.raises(DeployError):
        first.wait()
    assert repr(first) == "<fal app tester/first (not deployed)>"
    fal_notebook.deploy(double, name="first", wait=True)
    again = fal_notebook.deploy(double, name="first", setup_function=load)
    with pytest.raises(DeployError):
        again.wait()
    assert repr(again) == "<fal app tester/first (redeploy failed)>"
    cancelled = fal_notebook.deploy(double, name="first", setup_function=lambda: time.sleep(30))
    cancelled.cancel_deploy()
    with pytest.raises(DeployError):
        cancelled.wait()
    assert repr(cancelled) == "<fal app tester/first (redeploy failed)>"


def test_setup_function_is_an_argument() -> None:
    handle = fal_notebook.deploy(
        lambda table, key: table[key], name="table", setup_function=lambda: {"a": 1}, wait=True
    )
    assert handle("a") == 1


def test_what_a_cell_would_note_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="auth=public without serve=true"):
        fal_notebook.deploy(double, auth="public", wait=True)


@pytest.mark.parametrize("auth", ["public", "shared"])
def test_a_function_that_others_may_call_in_vain_is_noted(auth: str) -> None:
    said = f"auth={auth} without serve=true: only the owner may call this app"
    assert _noted(auth=auth) == [said]
    assert _noted(auth=auth, serve=True) == []
    assert _noted(auth=auth, exposed_port=8000) == []
    assert _noted(auth="private") == []


def _noted(**values: Any) -> Any:
    options, cell = split_options(values)
    return dry_run(double, options, cell, "")[2]


def _star() -> Callable[..., Any]:
    def first(*numbers: int, **more: int) -> list[Any]:
        return [*numbers, more]

    return first


def test_star_parameters_are_noted_as_http_fills_none_and_double_starred_take_all_fields() -> None:
    said = r"^`first` takes `\*numbers`, which stays empty over HTTP, where arguments have names"
    with pytest.warns(UserWarning, match=said) as caught:
        handle = fal_notebook.deploy(_star(), wait=True)
    assert len(caught) == 1
    assert handle(1, 2, x=3) == [1, 2, {"x": 3}]
    (schema,) = handle.openapi()["components"]["schemas"].values()
    assert schema["additionalProperties"] == {"type": "integer"}


def test_the_star_parameter_of_a_setup_or_of_a_server_is_not_noted() -> None:
    options, cell = split_options({"setup_function": double})
    assert dry_run(_star(), options, cell, "")[2] == []
    options, cell = split_options({"exposed_port": 8000})
    assert dry_run(_star(), options, cell, "")[2] == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": "a/b", "target": "local"}, "image and target=local exclude each other"),
        ({"pass_env": ["NOT_SET_ANYWHERE"]}, "NOT_SET_ANYWHERE, not set in this kernel"),
    ],
)
def test_a_dry_run_refuses_what_the_deploy_would(values: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        dry_run(double, *split_options(values), "")


UNSERVABLE = """
from typing import Annotated
from pydantic import BaseModel, Field
class Cat(BaseModel):
    kind: str
class Dog(BaseModel):
    kind: str
def double(pet: Annotated[Cat | Dog, Field(discriminator="kind")]): pass
"""


def test_annotations_of_which_pydantic_makes_no_schema_are_refused_in_a_sentence() -> None:
    with pytest.raises(DeployError) as refused:
        fal_notebook.deploy(defined(UNSERVABLE), wait=True)
    said = "TypeError: the annotations of `double` cannot be served: Model 'Cat' needs field 'kind'"
    assert said in str(refused.value)
    assert "pydantic/" not in str(refused.value)


def test_the_star_parameter_of_an_endpoint_is_noted() -> None:
    class A(fal_notebook.App):
        @fal_notebook.endpoint("/")
        def all(self, *numbers: int) -> int:
            return sum(numbers)

    (note,) = dry_run(A, *split_options({}), "")[2]
    assert note.startswith("`all` takes `*numbers`")


def test_an_endpoint_that_is_named_like_a_verb_of_the_handle_is_noted_and_has_its_path() -> None:
    class Col(fal_notebook.App):
        @fal_notebook.endpoint("/delete")
        def delete(self) -> str:
            return "mine"

        @fal_notebook.endpoint("/link")
        def url(self) -> str:
            return "mine too"

        @fal_notebook.endpoint("/other")
        def other(self) -> None: ...

    said = (
        "`delete` and `url` are the handle's own; these endpoints are called as "
        'app["/delete"](…) and app["/link"](…)'
    )
    assert dry_run(Col, *split_options({}), "")[2] == [said]
    with pytest.warns(UserWarning, match=re.escape(said)):
        handle = fal_notebook.deploy(Col, wait=True)
    assert handle["/delete"]() == handle["delete"]() == "mine"
    assert handle["link"]() == "mine too"
    handle.delete()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_alives": 3}, "did you mean 'keep_alive'"),
        ({"dry_run": True}, "entry and dry_run are for cells"),
        ({"entry": "double"}, "entry and dry_run are for cells"),
        ({"name": "a b"}, "name='a b' is not allowed"),
        ({"python_version": "3.9"}, "python_version=3.9 is not this kernel's"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        fal_notebook.deploy(double, **options)


@pytest.mark.parametrize("value", [3, "abc", Exception, len, print])
def test_what_is_no_function_of_the_program_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^deploy takes a function .*, not .*; .*") as caught:
        fal_notebook.deploy(value, name="double")
    assert "\n" not in str(caught.value)


def test_without_a_function_it_is_said_what_an_image_needs() -> None:
    with pytest.raises(OptionError, match="deploy is that of an image, and image is missing"):
        fal_notebook.deploy(None, name="double")


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(OptionError, match="cannot be the name of an app"):
        fal_notebook.deploy(lambda: 1)


def test_another_programs_app_is_refused_before_the_handle_is_there(monkeypatch) -> None:
    fal_notebook.deploy(double, wait=True)
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/other.ipynb")
    with pytest.raises(ConflictError, match="takeover=true"):
        fal_notebook.deploy(double)


def test_a_failed_deploy_raises_with_reason_and_log_and_changes_nothing() -> None:
    handle = fal_notebook.deploy(double, wait=True)

    def load() -> None:
        print("half way")
        raise ValueError("no weights")

    with pytest.raises(
        DeployError, match=r"double: ValueError: no weights; revision.*\n(.*\n)*.*half way"
    ):
        fal_notebook.deploy(double, setup_function=load, wait=True)
    assert handle(1) == 2


def test_a_function_of_a_module_beside_the_program_fails_with_what_to_add(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "beside.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("beside").double
    noted = pytest.warns(UserWarning, match="local_python_modules=beside")
    failed = pytest.raises(DeployError, match=r"named 'beside'; .*add local_python_modules=beside")
    with noted, failed:
        fal_notebook.deploy(function, wait=True)
    handle = fal_notebook.deploy(function, wait=True, local_python_modules=["beside"])
    assert handle(4) == 8


def test_scaling_changed_during_a_deploy_stays(eventually) -> None:
    fal_notebook.deploy(double, wait=True)

    def load() -> None:
        import time

        time.sleep(0.5)

    handle = fal_notebook.deploy(double, setup_function=load)
    Handle("tester", "double").scale(keep_alive=99)
    assert handle.wait().status()["options"]["keep_alive"] == 99


def test_importing_the_package_is_light_and_starts_nothing() -> None:
    code = (
        "import sys, threading, fal_notebook\n"
        "heavy = {'httpx', 'pydantic', 'IPython', 'fastapi', 'asyncio', 'cloudpickle', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())"
    )
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert reply.stdout == "[] 1\n"


def test_a_deploy_without_notes_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fal_notebook.deploy(double, wait=True)
