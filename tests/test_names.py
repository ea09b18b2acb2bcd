"""fal's names: each that is not left out is here, with fal's parameters (`fal_names.json`).

The file was recorded from the SDK in the version that it names; nothing here imports that.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import fal_notebook as fal
from fal_notebook import exceptions, toolkit
from fal_notebook.deploying import given_by
from fal_notebook.exceptions import OutOfScopeError
from fal_notebook.options import Options
from fal_notebook.request_context import RequestContext

FAL: dict[str, Any] = json.loads((Path(__file__).parent / "fal_names.json").read_text())
LEFT_OUT = {
    *("BillingComponents", "BillingDeclaration", "FalServerlessKeyCredentials", "sync_dir"),
    *("FalServerlessHost", "LocalHost", "serverless", "cloud", "local", "wrap_app"),
    *("distributed", "workflows", "wma", "synchronized_inductor_cache"),
}
TOOLKIT_LEFT_OUT = {
    *("get_gpu_type", "load_inductor_cache", "sync_inductor_cache", "synchronized_inductor_cache"),
    *("ImageSizeConstraints", "ImageValidationConfig", "ImageValidationOptions", "to_xfal"),
    *("VideoNormalizationConfig", "VideoValidationConfig", "VideoValidationOptions"),
}
# What the SDK keeps on its classes for itself.
INTERNAL = {"host_kwargs", "isolate_channel", "local_file_path", "version_tuple", "upload_policy"}
NO_OPTIONS = {"app_name", "app_auth", "requirements_context_dir", "current_request"}
# Options by other names, or about fal's own machines.
OTHER = {"_base_image", "_scheduler", "_scheduler_options", "health_check_config", "machine_types"}
OTHER |= {"requirements_context_dir", "resolver"}
# The SDK's own control plane, and what nobody gives by name.
NO_PARAMETERS = {"host", "func"}

# Modules of what is left out, which import one of these names for themselves.
NO_MODULES = {"toolkit.types", "toolkit.image.nsfw_filter.inference"}
MODULES_LEFT_OUT = {"compilation", "constraints"}
NAMES = {*toolkit.__all__, "BackoffType", "IMAGE_SIZE_PRESETS", "ImageFormat", "ImageSizePreset"}
NAMES |= {"PendingFile", "cancel_on_disconnect", "retry"}
NAMES -= {"Field"}  # pydantic's own, which modules import for themselves
MODULES = {
    path: NAMES & set(names) for path, names in FAL["modules"].items() if path not in NO_MODULES
}

# Of these every parameter stands where it stands in fal.
TOOLKIT = {path for path in FAL["functions"] if path.startswith("toolkit.")}


def found(path: str) -> Any:
    value: Any = fal
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(f"{value.__name__}.{part}")
    return value


@pytest.mark.parametrize("path", sorted(FAL["functions"].keys() - TOOLKIT))
def test_parameters_are_fals(path: str) -> None:
    parameters = inspect.signature(found(path)).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    any_place = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    for name in {n.rstrip("*") for n in FAL["functions"][path]} - NO_PARAMETERS:
        assert name in parameters or any_name or any_place, f"{path} lacks {name}"


@pytest.mark.parametrize("path", sorted(FAL["functions"].keys() - TOOLKIT))
def test_what_may_stand_first_is_as_in_fal(path: str) -> None:
    function = found(path)
    if inspect.isclass(function) and issubclass(function, (fal.ContainerImage, fal.RetryConfig)):
        return  # made by name
    parameters = inspect.signature(function).parameters.values()
    ours = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    ours = [name for name in ours if name not in ("self", "cls")]
    fals = [name for name in FAL["functions"][path] if not name.endswith("*")]
    same = len(ours) if path != "cached" else 0
    assert ours[:same] == fals[:same], path


# With fal it takes a content type, and `from_bytes` a format; here both may be given.
IMAGES_OWN = {"toolkit.Image.from_bytes_async": ["format*", "size*"]}


@pytest.mark.parametrize("path", sorted(TOOLKIT))
def test_parameters_of_the_toolkit_stand_as_in_fal(path: str) -> None:
    parameters = inspect.signature(found(path)).parameters.values()
    ours = [p.name + "*" * (p.kind is p.KEYWORD_ONLY) for p in parameters if p.name != "self"]
    assert ours == FAL["functions"][path] + IMAGES_OWN.get(path, [])


def test_every_name_is_there_or_named_as_left_out() -> None:
    for name in set(FAL["attributes"]["fal"]) - LEFT_OUT - INTERNAL:
        assert found(name) is not None
    for name in set(FAL["attributes"]["toolkit"]) - TOOLKIT_LEFT_OUT:
        assert getattr(toolkit, name) is not None
    for name in FAL["attributes"]["exceptions"]:
        assert issubclass(getattr(exceptions, name), Exception) or name == "catch_gpu_exceptions"
    fields = RequestContext.__dataclass_fields__.keys()
    assert fields >= set(FAL["attributes"]["request"]) - INTERNAL
    for name, its in FAL["fields"].items():
        assert getattr(toolkit, name).model_fields.keys() >= set(its)


@pytest.mark.parametrize("path", sorted(path for path, names in MODULES.items() if names))
def test_names_are_in_the_modules_where_fal_has_them(path: str) -> None:
    module = importlib.import_module(f"fal_notebook.{path}")
    for name in MODULES[path]:
        there = getattr(module, name)
        assert there is getattr(toolkit, name, there)


@pytest.mark.parametrize("name", sorted(MODULES_LEFT_OUT))
def test_a_module_of_the_toolkit_that_is_left_out_says_so(name: str) -> None:
    with pytest.raises(OutOfScopeError, match=rf"fal's toolkit\.{name} is not part of"):
        importlib.import_module(f"fal_notebook.toolkit.{name}")


def test_every_option_and_attribute_of_an_app_is_one_here() -> None:
    options = Options.model_fields.keys()
    assert options >= set(FAL["options"]) - OTHER
    assert options >= set(FAL["attributes"]["App"]) - INTERNAL - NO_OPTIONS


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_what_is_left_out_says_so(name: str) -> None:
    sentence = f"fal's {name} is not part of fal_notebook; use the fal SDK for it"
    with pytest.raises(OutOfScopeError) as refusal:
        exec(f"from fal_notebook import {name}")
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("name", sorted(TOOLKIT_LEFT_OUT))
def test_what_is_left_out_of_the_toolkit_says_so(name: str) -> None:
    with pytest.raises(OutOfScopeError, match=rf"fal's toolkit\.{name} is not part of"):
        exec(f"from fal_notebook.toolkit import {name}")


def test_a_left_out_function_says_so_where_fal_has_it() -> None:
    with pytest.raises(OutOfScopeError, match="fal's sync_dir is not part of"):
        exec("from fal_notebook.sync import sync_dir")


@pytest.mark.parametrize("name", ["distributed", "workflows", "wma"])
def test_a_module_that_is_left_out_says_so(name: str) -> None:
    with pytest.raises(OutOfScopeError, match=f"fal's {name} is not part of"):
        importlib.import_module(f"fal_notebook.{name}")


def test_billing_declarations_are_refused() -> None:
    with pytest.raises(exceptions.AppDefinitionError, match="billing declarations are fal's own"):
        fal.endpoint("/", billing=object())


def test_errors_travel() -> None:
    sent = exceptions.AppFileUploadException("no", "a/b")
    got = pickle.loads(pickle.dumps(sent))
    assert (str(got.message), got.relative_path) == ("no", "a/b")
    assert "%fal keys create" in str(
        pickle.loads(pickle.dumps(exceptions.UnauthenticatedException()))
    )
    with pytest.raises(OutOfScopeError, match=r"^fal's x is not"):
        raise pickle.loads(pickle.dumps(OutOfScopeError("x")))


def test_a_misspelt_keyword_of_a_file_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'requst'"):
        toolkit.File.from_bytes(b"", requst=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'requst'"):
        toolkit.Image.from_bytes(b"", "png", requst=None)


@pytest.mark.parametrize("where", ["attribute", "keyword", "base"])
def test_local_requirements_begin_where_the_class_says(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below" / "own").mkdir(parents=True)
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "n.ipynb"))
    context = {"requirements_context_dir": "below"}
    attributes = {"requirements": ["./own", "six"]} | (context if where != "keyword" else {})
    keywords = {**(context if where == "keyword" else {}), "_scheduler": "nomad"}
    made = type(fal.App)("Made", (fal.App,), attributes, **keywords)
    made = made if where != "base" else type("Derived", (made,), {})
    assert given_by(made) == {"requirements": [str(tmp_path / "below" / "own"), "six"]}
