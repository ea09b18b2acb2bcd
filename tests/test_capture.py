"""Capture: what a payload holds, what it says about it, and that it loads elsewhere."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from cells import COUNTER
from sklearn.linear_model import LogisticRegression

import fal_notebook
from fal_notebook import payload as payload_module
from fal_notebook.exceptions import CaptureError, PayloadTooLargeError, UnpicklableError
from fal_notebook.payload import capture, notes
from fal_notebook.runner.envelope import unpack
from fal_notebook.runner.sdk_server import SdkServer

MATRIX = Path(__file__).with_name("capture_matrix.py")
ANNOTATIONS = Path(__file__).with_name("annotation_matrix.py")
MINORS = ("3.10", "3.11", "3.12", "3.13")
HERE = "{}.{}".format(*sys.version_info)
PACKAGES = ("cloudpickle", "pydantic", "packaging", "ipython", "starlette")


def notebook(source: str, **names: Any) -> dict[str, Any]:
    """Return the names that a cell defines, as if its module were ``__main__``."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def loaded(content: bytes) -> dict[str, Any]:
    result: dict[str, Any] = pickle.loads(unpack(content)[1])
    return result


# The matrix


def _find_python(minor: str) -> str | None:
    """Return an interpreter of this minor; a pyenv shim may stand for one that is not there."""
    if minor == HERE:
        return sys.executable
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python"))
    for candidate in [*map(str, pyenv), shutil.which(f"python{minor}")]:
        if candidate and _answers(candidate, minor):
            return candidate
    return None


def _answers(python: str, minor: str) -> bool:
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == minor


PYTHONS = {minor: python for minor in MINORS if (python := _find_python(minor)) is not None}


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that makes an environment of a Python minor, once per session."""

    @functools.lru_cache
    def make(minor: str) -> Path:
        if minor == HERE:
            return Path(sys.executable)
        folder = tmp_path_factory.mktemp("python") / minor
        python = folder / "bin" / "python"
        uv = [sys.executable, "-m", "uv"]
        _run([*uv, "venv", "--quiet", "--python", PYTHONS[minor], str(folder)])
        _run([*uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES])
        return python

    return make


def _run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _environment(folder: Path, seed: int) -> dict[str, str]:
    alone = folder.parent / "package"  # beside it may lie libraries of this Python minor
    alone.mkdir(exist_ok=True)
    if not (alone / "fal_notebook").exists():
        (alone / "fal_notebook").symlink_to(Path(fal_notebook.__file__).parent)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(alone),
        "PYTHONHASHSEED": str(seed),
    }


def _matrix(
    python: Path, action: str, folder: Path, seed: int, matrix: Path = MATRIX, *more: str
) -> dict[str, Any]:
    environment = _environment(folder, seed)
    command = [str(python), str(matrix), action, str(folder), *more]
    output = _run(command, env=environment, cwd=folder.parent, stdin=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def test_the_current_python_is_in_the_matrix() -> None:
    assert HERE in PYTHONS


@pytest.mark.parametrize("minor", PYTHONS)
def test_cells_are_captured_by_a_real_shell_and_run_in_a_fresh_interpreter(
    minor: str, environments: Any, tmp_path: Path
) -> None:
    from capture_matrix import CASES

    python = environments(minor)
    folder = tmp_path / "payloads"
    folder.mkdir()
    first = _matrix(python, "capture", folder, seed=1)
    results = _matrix(python, "load", folder, seed=2)
    expected = {case.name: case.expected for case in CASES if case.name in first}
    expected |= {name: results[name] for name, value in expected.items() if value is None}
    assert results == expected
    assert results.get("trained_model", 0) in range(10)
    again = _matrix(python, "capture", folder, seed=3)
    assert again == first, "the digest is the same after a kernel restart with another hash seed"


@pytest.mark.parametrize("minor", PYTHONS)
def test_annotations_mean_in_a_runner_what_they_mean_in_the_notebook(
    minor: str, environments: Any, tmp_path: Path
) -> None:
    python, folder = environments(minor), tmp_path / "payloads"
    folder.mkdir()
    step = 1 if minor == HERE else 5  # it goes through all places and all kinds
    here = _matrix(python, "capture", folder, 1, ANNOTATIONS, str(step))
    assert len(here) > 500 / step
    assert _matrix(python, "load", folder, 2, ANNOTATIONS) == here
    again = tmp_path / "again"
    again.mkdir()
    _matrix(python, "capture", again, 3, ANNOTATIONS, str(5 * step))  # a kernel started anew
    digests = json.loads((folder / "digests.json").read_text())
    found = json.loads((again / "digests.json").read_text())
    assert len(found) > 100 / step
    assert found == {name: digests[name] for name in found}


@pytest.mark.parametrize("minor", PYTHONS)
def test_a_default_of_none_changes_no_annotation(
    minor: str, environments: Any, tmp_path: Path
) -> None:
    """Else Python 3.10 would hide what FastAPI or pydantic is told by `Annotated`."""
    source = (
        "from typing import Annotated\nfrom fal_notebook.payload import _hints\n"
        "def f(a: Annotated[int, 1] = None, b: int = None): pass\n"
        "assert _hints(f) == {'a': Annotated[int, 1], 'b': int}, _hints(f)"
    )
    environment = _environment(tmp_path / "payloads", 1)
    _run([str(environments(minor)), "-c", source], env=environment, cwd=tmp_path)


# What a payload says about itself


def test_manifest_names_the_versions_that_load_the_payload() -> None:
    def answer(x: int) -> int:
        """Answer."""
        return x

    manifest, _ = unpack(capture(answer).content)
    assert manifest["python"] == HERE
    assert manifest["cloudpickle"] == cloudpickle.__version__
    assert manifest["interpreter"] == sys.executable
    assert (manifest["name"], manifest["kind"], manifest["doc"]) == (
        "answer",
        "function",
        "Answer.",
    )


def test_captured_lists_name_kind_and_size_of_each_value() -> None:
    model = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    cell = notebook(
        "import json as j\n"
        "from math import sqrt\nfrom pathlib import Path\n"
        "class Thing: pass\n"
        "def helper(): return j, sqrt, Path, Thing()\n"
        "def predict(x=3): return model, helper()\n",
        model=model,
    )
    captured = {c.name: c for c in capture(cell["predict"]).captured}
    kinds = {name: c.kind for name, c in captured.items()}
    assert kinds == {
        "predict": "function",
        "model": "LogisticRegression",
        "helper": "function",
        "x": "int, a default",
        "j": "module",
        "sqrt": "import",
        "Path": "import",
        "Thing": "class",
    }
    assert next(iter(captured)) == "predict"
    assert captured["model"].size == pytest.approx(len(pickle.dumps(model, 5)), rel=0.2)
    assert captured["j"].size == 0


def test_a_class_is_listed_once_and_with_its_methods() -> None:
    cell = notebook(
        "class Out:\n    def go(self): return 1\n"
        "def helper(o: Out) -> Out: return Out()\ndef predict(x) -> Out: return helper(Out())"
    )
    payload = capture(cell["predict"])
    assert [c.name for c in payload.captured] == ["predict", "helper", "Out"]
    assert payload.captured[2].size > len("go")


def test_what_python_adds_to_a_method_is_not_listed() -> None:
    source = (
        "class Base: pass\nclass A(Base):\n    def __init__(self): super().__init__()\n"
        "def f(): return A()"
    )
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), cell)  # from "<string>" it would count as generated
    assert {c.name for c in capture(cell["f"]).captured} == {"f", "A", "Base"}


def test_a_closure_variable_is_listed_with_the_function_whose_it_is() -> None:
    cell = notebook(
        "def times(k):\n    def scaled(x): return x * k\n    return scaled\n"
        "times5 = times(5)\ndef f(x): return times5(x)"
    )
    kinds = {c.name: c.kind for c in capture(cell["f"]).captured}
    assert kinds == {"f": "function", "times5": "function", "k": "int, of times5"}


def test_sources_hold_a_wrapper_and_the_wrapped(tmp_path: Path) -> None:
    source = (
        "import functools\n"
        "def logged(f):\n    @functools.wraps(f)\n    def inner(): return f()\n    return inner\n"
        "class K:\n    def go(self): return 1\n"
        "@logged\ndef predict(): return K().go()\n"
    )
    (tmp_path / "cell.py").write_text(source)
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, str(tmp_path / "cell.py"), "exec"), cell)
    sources = capture(cell["predict"]).manifest["sources"]
    assert set(sources) == {"inner", "predict", "K"}
    assert sources["predict"] == "@logged\ndef predict(): return K().go()\n"
    assert sources["K"] == "class K:\n    def go(self): return 1\n"


def test_library_functions_travel_by_their_path() -> None:
    cell = notebook("from pydantic import BaseModel\nclass M(BaseModel): x: int\ndef f(): return M")
    names = [c.name for c in capture(cell["f"]).captured]
    assert names == ["f", "M"], "nothing of pydantic itself"


def test_a_handle_is_listed_as_a_handle() -> None:
    kind = type(
        "Handle", (), {"__module__": "fal_notebook.handle", "__reduce__": lambda s: (int, ())}
    )
    cell = notebook("def call(): return other", other=kind())
    assert [c.kind for c in capture(cell["call"]).captured][1] == "handle"


def test_hints_are_resolved_from_strings() -> None:
    cell = notebook(
        "from __future__ import annotations\nclass A: pass\ndef f(a: A) -> int: return 1"
    )
    hints = loaded(capture(cell["f"]).content)["hints"]
    assert hints["return"] is int
    assert hints["a"].__name__ == "A"


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    cell = notebook("def f(a: 'Missing') -> int: return 1")
    with pytest.raises(CaptureError, match="annotations of `f` cannot be resolved: name 'Missing'"):
        capture(cell["f"])


def test_setup_function_travels_beside_the_function() -> None:
    cell = notebook("K = 4\ndef load(): return K\ndef f(k): return k")
    content = capture(cell["f"], setup_function=cell["load"]).content
    assert loaded(content)["setup"]() == 4


# Local modules


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "beside_notebook.py").write_text("def one(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("beside_notebook", None)


@pytest.mark.parametrize(
    "source",
    [
        "import beside_notebook as b\ndef f(): return b.one()",
        "from beside_notebook import one\ndef f(): return one()",
        "def f():\n    import beside_notebook\n    return beside_notebook.one()",
    ],
)
def test_a_module_beside_the_notebook_is_warned_about(beside: Path, source: str) -> None:
    cell = notebook(source)
    (warning,) = capture(cell["f"]).warnings
    assert warning.startswith("`f` uses the module `beside_notebook`")
    assert "local_python_modules=beside_notebook" in warning
    assert capture(cell["f"], local_python_modules=["beside_notebook"]).warnings == ()


def test_sources_hold_modules_that_travel_and_the_class_of_fals_own_sdk(beside: Path) -> None:
    cell = notebook("import beside_notebook as b\ndef f(): return b.one()")
    sources = capture(cell["f"], local_python_modules=["beside_notebook"]).manifest["sources"]
    assert sources["beside_notebook"] == (beside / "beside_notebook.py").read_text()
    assert "beside_notebook" not in capture(cell["f"]).manifest["sources"]
    path, served = beside / "cell.py", {"__name__": "__main__"}
    path.write_text("class Served:\n    def run(self): return 1\n")
    exec(compile(path.read_text(), str(path), "exec"), served)
    sources = capture(SdkServer(served["Served"], {})).manifest["sources"]
    assert sources["Served"] == path.read_text()


def test_modules_are_not_left_registered(beside: Path) -> None:
    cell = notebook("def f(): return db", db=sqlite3.connect(":memory:"))
    with pytest.raises(UnpicklableError):
        capture(cell["f"], local_python_modules=["beside_notebook"])
    assert "beside_notebook" not in cloudpickle.list_registry_pickle_by_value()
    cell["db"].close()


def test_an_unknown_local_module_is_refused() -> None:
    cell = notebook("def f(): return 1")
    with pytest.raises(CaptureError, match="local_python_modules names `nowhere_mod`"):
        capture(cell["f"], local_python_modules=["nowhere_mod"])


# What cannot be pickled

UNPICKLABLE = {
    "def predict(): return db": "`predict` uses global `db`, a sqlite3.Connection, which",
    "def helper(): return db\ndef predict(): return helper()": (
        "`predict` calls `helper`, which uses global `db`, a sqlite3.Connection, which"
    ),
    "config = {'db': db, 'a': 1}\ndef predict(): return config": (
        "`predict` uses global `config`, whose ['db'] is a sqlite3.Connection, which"
    ),
    "config = {'pools': [1, (2, db)]}\ndef predict(): return config": (
        "`predict` uses global `config`, whose ['pools'][1][1] is a sqlite3.Connection, which"
    ),
    "class S: pass\ns = S(); s.me = s; s.conn = db\ndef predict(): return s": (
        "`predict` uses global `s`, whose .conn is a sqlite3.Connection, which"
    ),
    "def make():\n    inner = db\n    def predict(): return inner\n    return predict\n"
    "predict = make()": "`predict` uses closure variable `inner`, a sqlite3.Connection, which",
    "def predict(c=db): return c": (
        "`predict` has the default argument `c`, a sqlite3.Connection, which"
    ),
    "def predict(*, c=db): return c": (
        "`predict` has the default argument `c`, a sqlite3.Connection, which"
    ),
    "class S:\n    def go(self): return db\ndef predict(): return S()": (
        "`predict` uses the class `S`, which has the method `go`, which uses global `db`, "
        "a sqlite3.Connection, which"
    ),
    "class S:\n    conn = db\ndef predict(): return S()": (
        "`predict` uses the class `S`, whose .conn is a sqlite3.Connection, which"
    ),
    "class S: pass\ndef predict(): return S()\npredict.conn = db": (
        "`predict` holds at .conn a sqlite3.Connection, which"
    ),
    "import functools\ndef go(): return db\npredict = functools.partial(go)": (
        "`go` uses global `db`, a sqlite3.Connection, which"
    ),
}


@pytest.mark.parametrize("source", UNPICKLABLE)
def test_what_cannot_be_pickled_is_named_with_the_path_to_it(source: str) -> None:
    db = sqlite3.connect(":memory:")
    cell = notebook(source, db=db)
    with pytest.raises(UnpicklableError) as caught:
        capture(cell["predict"])
    db.close()
    assert str(caught.value) == (
        f"{UNPICKLABLE[source]} cannot be pickled; "
        "create it in setup_function or inside the function"
    )


def test_what_a_class_says_against_its_pickling_is_told() -> None:
    source = "class Bad:\n    def __reduce__(self): raise RuntimeError('not me')\nbad = Bad()\n"
    with pytest.raises(UnpicklableError, match=r"cannot be pickled \(RuntimeError: not me\); cre"):
        capture(notebook(source + "def f(): return bad")["f"])


def test_a_lock_in_an_array_of_objects_is_found() -> None:
    array = np.array([[1, threading.Lock()]], dtype=object)
    with pytest.raises(UnpicklableError, match=r"`data`, whose \.flat\[1\] is a _thread\.lock"):
        capture(notebook("def f(): return data", data=array)["f"])


LOCK = threading.Lock()


class ByNames:
    def __getstate__(self) -> Any:
        return {"inner": [LOCK]}


class Noted(list[Any]):
    note = LOCK

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.note = LOCK


class ByPlaces:
    def __getstate__(self) -> Any:
        return [LOCK]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (pd.Series([1, LOCK]), ".iloc[1]"),
        (pd.DataFrame({"a": [1, 2], "b": [1, LOCK]}), "['b'].iloc[1]"),
        (pd.DataFrame({"a": [1]}, index=[LOCK]), ".index."),
        (collections.deque([{"a": LOCK}]), "[0]['a']"),
        (collections.defaultdict(int, a=LOCK), "['a']"),
        ({(1, LOCK): 1}, ".keys()[0][1]"),
        (ValueError("a", [LOCK]), ".args[1][0]"),
        (ByNames(), ".inner[0]"),
        (ByPlaces(), ".__getstate__()[0]"),
        (iter([LOCK]), ".__reduce__()[1][0][0]"),
        (Noted([1]), ".note"),
    ],
)
def test_a_lock_is_found_in_what_a_value_is_pickled_as(value: Any, path: str) -> None:
    with pytest.raises(UnpicklableError, match=r"is a _thread\.lock, which cannot") as caught:
        capture(notebook("def f(): return data", data=value)["f"])
    assert f"`f` uses global `data`, whose {path}" in str(caught.value)


def test_a_lock_that_a_member_of_an_enum_holds_is_found() -> None:
    source = (
        "import enum\nclass Kind(enum.Enum): ONE = 1\nKind.ONE.lock = LOCK\ndef f(): return Kind"
    )
    with pytest.raises(UnpicklableError, match=r"`Kind`, whose \.ONE\.lock is a _thread\.lock"):
        capture(notebook(source, LOCK=LOCK)["f"])


def test_names_in_annotations_that_are_texts_travel_with_helpers() -> None:
    source = (
        "from __future__ import annotations\nfrom typing import Optional\n"
        "class M: pass\nclass N: pass\n"
        "def helper(x: M, y: Optional['N'], z: not a type = 0, w: Gone = 0): return 1\n"
        "def f(): return helper"
    )
    source = source.replace("z: not a type", "z: 'not a type'")
    captured = capture(notebook(source)["f"])
    assert {"M", "N", "Optional"} <= {each.name for each in captured.captured}
    names = loaded(captured.content)["function"]().__globals__
    assert {"M", "N", "Optional"} <= names.keys()
    changed = source.replace("class N: pass", "class N: a = 1")
    assert capture(notebook(changed)["f"]).digest != captured.digest


RECURSIVE = """
def made():
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - 1)
    def early(): return late
    if 0: late = 1
    return even, odd, early
even, odd, early = made()
"""


def test_functions_share_the_variables_of_the_one_around_them() -> None:
    captured = capture(notebook(f"{COUNTER}def f():\n    inc()\n    return get()")["f"])
    function = loaded(captured.content)["function"]
    assert (function(), function(), captured.warnings) == (1, 2, ())


def test_functions_around_which_variables_hold_each_other_are_captured() -> None:
    source = f"{RECURSIVE}def f(n): return even(n), odd(n), early"
    even, odd, early = loaded(capture(notebook(source)["f"]).content)["function"](10)
    assert (even, odd) == (True, False)
    with pytest.raises(NameError, match="late"):
        early()


def test_a_value_that_is_pickled_as_ever_more_values_ends() -> None:
    source = "class Bad:\n    def __reduce__(self): return Bad, (Bad(), open)\nbad = Bad()\n"
    with pytest.raises(UnpicklableError, match="nested too deeply"):
        capture(notebook(source + "def f(): return bad")["f"])


def test_an_object_that_is_called_like_a_function_is_captured() -> None:
    made = notebook("def f(x: int): return 2 * x")["f"]
    assert capture(np.vectorize(made)).manifest["name"] == "f"


def test_a_cached_function_is_listed_once() -> None:
    source = "import functools\n@functools.cache\ndef held(x): return x\ndef f(): return held(1)"
    assert [part.name for part in capture(notebook(source)["f"]).captured] == ["f", "held"]


@pytest.mark.parametrize(
    ("many", "path"),
    [
        ([*range(100_000), {"lock": LOCK}], r"\[100000\]\['lock'\]"),
        ({**{n: n for n in range(100_000)}, "bad": LOCK}, r"\['bad'\]"),
    ],
)
def test_a_lock_in_a_big_object_is_found(many: Any, path: str) -> None:
    cell = notebook("def f(): return data", data=many)
    with pytest.raises(UnpicklableError, match=rf"`data`, whose {path} is a _thread.lock"):
        capture(cell["f"])


def test_a_lock_in_the_notes_of_a_frame_is_found() -> None:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["lock"] = threading.Lock()
    with pytest.raises(UnpicklableError, match=r"`data`, whose \.attrs\['lock'\] is a _thread"):
        capture(notebook("def f(): return data", data=frame)["f"])


def test_the_path_into_a_deep_value_is_cut() -> None:
    deep: Any = threading.Lock()
    for _ in range(150):
        deep = [deep]
    with pytest.raises(UnpicklableError, match=r"whose \[0\].*….*\[0\] is a _thread") as caught:
        capture(notebook("def f(): return data", data=deep)["f"])
    assert len(str(caught.value)) < 300


def test_a_value_nested_too_deeply_is_said_to_be() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(
        UnpicklableError, match=r"^`f` uses global `data`, a list nested too deeply"
    ):
        capture(notebook("def f(): return data", data=deep)["f"])


def test_what_python_generates_for_a_class_is_not_listed() -> None:
    cell = notebook(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass D:\n    a: int = 2\n"
        "def f(): return D()"
    )
    assert [value.name for value in capture(cell["f"]).captured] == ["f", "D"]


# Size


def test_above_the_first_limit_the_three_largest_values_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notes, "LARGE", 500_000)
    sizes = {"a": 300_000, "b": 200_000, "c": 100_000, "d": 50_000}
    cell = notebook("def f(): return a, b, c, d", **{n: bytes(s) for n, s in sizes.items()})
    (warning,) = capture(cell["f"]).warnings
    assert warning == (
        "the payload of `f` is 0.7 MB; the largest values are "
        "`a` (0.3 MB), `b` (0.2 MB), `c` (0.1 MB)"
    )


def test_above_the_second_limit_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "MAX_BYTES", 1_000_000)
    cell = notebook("def f(): return weights", weights=np.zeros(1_000_000))
    with pytest.raises(PayloadTooLargeError, match=r"above 1.0 MB; .* are `weights` \(8.0 MB\)"):
        capture(cell["f"])


# Warnings


def test_writes_to_globals_and_relative_reads_are_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "cell.py"
    path.write_text("n = 0\ndef count():\n    global n\n    n += 1\n    return open('a.txt')\n")
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), cell)
    write, read = capture(cell["count"]).warnings
    assert write.startswith("`count` writes to the global `n` (line 3)")
    assert read.startswith("`count` reads the relative file 'a.txt' (line 5)")


def test_an_open_file_is_captured_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hello")
    with (tmp_path / "t.txt").open() as file:
        cell = notebook("def f(): return file.read()", file=file)
        content = capture(cell["f"]).content
    assert isinstance(loaded(content)["function"].__globals__["file"], io.StringIO)


def test_an_open_file_is_captured_with_a_warning_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.txt"
    path.write_text("one\ntwo\n")
    with path.open() as handle:
        cell = notebook("def f(): return fh.read()", fh=handle)
        (warning,) = capture(cell["f"]).warnings
        assert warning.startswith("`f` uses global `fh`, an open file, and a runner gets a copy")
        cell = notebook("def g(): return box\ndef f(): return g()", box=[{"in": handle}])
        (warning,) = capture(cell["f"]).warnings
        assert warning.startswith(
            "`f` calls `g`, which uses global `box`, which holds an open file"
        )
        monkeypatch.setattr(sys, "stdout", handle)  # that of each runner is its own
        assert capture(notebook("def f(): return out", out=handle)["f"]).warnings == ()


def warnings_of(body: str, **names: Any) -> tuple[str, ...]:
    import linecache

    filename = f"<warned {hash(body)}>"
    linecache.cache[filename] = (len(body), None, body.splitlines(keepends=True), filename)
    namespace = {"__name__": "__main__", **names}
    exec(compile(body, filename, "exec"), namespace)
    return capture(namespace["f"]).warnings


@pytest.mark.parametrize(
    "statement",
    [
        "seen['a'] = 1",
        "seen['a'] += 1",
        "seen['a']['b'] = 1",
        "del seen['a']",
        "seen.update(a=1)",
        "seen.setdefault('a', 1)",
        "state.count = 1",
        "Box.n = 2",
        "rows.append(1)",
        "[rows.pop() for _ in range(2)]",
    ],
)
def test_a_change_of_captured_data_is_warned_of_once(statement: str) -> None:
    names = {"seen": {}, "rows": [], "state": types.SimpleNamespace(), "Box": type("Box", (), {})}
    (sentence,) = warnings_of(f"def f():\n    {statement}\n    {statement}\n", **names)
    assert "`f` writes to the global `" in sentence
    assert "(line 2)" in sentence


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n    rows = []\n    rows.append(1)\n    return rows\n",
        "def f(seen):\n    seen['a'] = 1\n",
        "def f():\n    json.x = 1\n",
        "def f():\n    return seen['a'], rows.copy(), seen.get(1)\n",
        "def f():\n    made = dict(seen)\n    made['a'] = 1\n",
        "def f():\n    return open(absolute)\n",
        "def f():\n    return open(written, 'w')\n",
    ],
)
def test_what_changes_no_captured_data_is_not_warned_of(body: str) -> None:
    names = {"seen": {}, "rows": [], "json": json, "absolute": "/etc/x", "written": "x"}
    assert warnings_of(body, **names) == ()


@pytest.mark.parametrize("call", ["open(FN)", "Path(FN).read_text()", "np.load(FN)"])
def test_a_captured_relative_path_that_is_read_is_warned_of(call: str) -> None:
    (sentence,) = warnings_of(f"def f():\n    return {call}\n", FN="a/b.npy", Path=Path, np=np)
    assert "`f` reads the relative file 'a/b.npy' (line 2)" in sentence


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n    return DATA.open()\n",
        "def f():\n    return DATA.read_text()\n",
        "def f():\n    return (DATA.parent / 'b.npy').read_text()\n",
        "def f():\n    return open(DATA)\n",
        "def f():\n    return np.load(DATA)\n",
        "def f():\n    return (HOME / 'b.npy').read_bytes()\n",
        "def f(p=DATA):\n    return open(p)\n",
        "def make(p):\n    def f():\n        return open(p)\n    return f\nf = make(DATA)\n",
    ],
)
def test_a_captured_path_object_that_is_read_is_warned_of(body: str) -> None:
    (sentence,) = warnings_of(body, DATA=Path("a/b.npy"), HOME=Path("a"), np=np)
    assert "`f` reads the relative file 'a/b.npy' (line " in sentence


@pytest.mark.parametrize("use", ["open(DATA)", "DATA.open()", "WRITTEN.open('w')", "NAME.open()"])
def test_an_absolute_or_written_path_object_is_not_warned_of(use: str) -> None:
    names = {"DATA": Path("/a/b"), "WRITTEN": Path("a"), "NAME": types.SimpleNamespace()}
    assert warnings_of(f"def f():\n    return {use}\n", **names) == ()


class Counted:
    """Says how often its ``__reduce__`` is asked."""

    def __init__(self, number: int, asked: list[int]) -> None:
        self.number, self.asked = number, asked

    def __reduce__(self) -> tuple[Any, ...]:
        self.asked.append(self.number)
        return list, (), None, iter([self.number])


def test_each_value_is_reduced_once() -> None:
    asked: list[int] = []
    names = {"slow": Counted(1, asked), "held": {"a": [Counted(2, asked)]}}
    content = capture(notebook("def uses(): return slow, held", **names)["uses"]).content
    assert sorted(asked) == [1, 2]
    assert loaded(content)["function"]() == ([1], {"a": [[2]]})


class Dotted(dict):  # type: ignore[type-arg]
    __getattr__ = dict.get


class Vivid(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__

    def __missing__(self, key: str) -> Any:
        made = self[key] = Vivid()
        return made


class Refusing:
    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def test_values_that_make_up_their_attributes_are_only_values() -> None:
    names = {"DOTTED": Dotted(lr=1), "VIVID": Vivid(lr=1), "REFUSING": Refusing()}
    if sys.version_info < (3, 11):  # whose pickle calls the __getstate__ that they make up
        for name in ("DOTTED", "VIVID"):
            used = notebook(f"def used():\n    return {name}", **names)["used"]
            with pytest.raises(UnpicklableError, match=f"`{name}`"):
                capture(used)
        return
    used = notebook("def used():\n    return DOTTED, VIVID, REFUSING", **names)["used"]
    dotted, vivid, refusing = loaded(capture(used).content)["function"]()
    assert (dict(dotted), dict(vivid), type(refusing)) == ({"lr": 1}, {"lr": 1}, Refusing)
    assert dict(names["VIVID"]) == {"lr": 1}


class Silent:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_value_that_tells_nothing_of_itself_is_refused_with_its_name() -> None:
    used = notebook("def used():\n    return SILENT", SILENT=Silent())["used"]
    with pytest.raises(UnpicklableError, match=r"`SILENT`, whose \.lock is a _thread\.lock"):
        capture(used)
