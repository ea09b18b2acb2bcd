"""The analysis of a cell's source."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.cell import analyse, classes, warnings
from fal_notebook.exceptions import CellError

CELL = """
import numpy as np, os.path
from math import sqrt as root
RATE, (low, *rest) = 3, (1, 2)
class Model: inner = 1
def first(x): local = 1; return local
if RATE:
    async def second(x):
        def nested(): pass
        return await x
    for i in range(3): pass
with open(__file__) as handle: total: int = 1
"""


def test_the_last_function_of_the_cell_is_the_entry() -> None:
    assert analyse(CELL).entry == "second"
    assert analyse(CELL).functions == ("first", "second")


def test_what_is_defined_anew_counts_where_it_was_last() -> None:
    text = (
        "def f(): pass\nclass A: pass\ndef g(): pass\nclass B: pass\ndef f(): pass\nclass A: pass"
    )
    assert analyse(text).functions == ("g", "f")
    assert analyse(text).entry == "f"
    assert classes(text) == ("B", "A")


def test_names_of_the_module_level_only_are_defined() -> None:
    cell = analyse(CELL)
    names = {"RATE", "low", "rest", "Model", "first", "second", "i", "handle", "total"}
    assert set(cell.defined) == names
    assert cell.imported == ("np", "os", "root")


def test_entry_may_be_any_name_that_the_cell_defines() -> None:
    assert analyse(CELL, "first").entry == "first"
    assert analyse("def f(x): pass\ng = partial(f, 1)", "g").entry == "g"


def test_an_entry_that_is_not_there_lists_the_functions() -> None:
    with pytest.raises(CellError, match="does not define `third`; it defines `first`, `second`"):
        analyse(CELL, "third")
    with pytest.raises(CellError, match="does not define `third`; it defines no function"):
        analyse("x = 1", "third")


def test_a_cell_without_function_is_refused() -> None:
    with pytest.raises(CellError, match="defines no function"):
        analyse("x = lambda: 1")


@pytest.mark.parametrize(
    "source",
    [
        "await go()",
        "async with a as b: pass",
        "async for a in b: pass",
        "x = [i async for i in y]",
        "if 1:\n    print(await go())",
    ],
)
def test_top_level_await_is_refused(source: str) -> None:
    with pytest.raises(CellError, match="awaits at its top level"):
        analyse(f"async def f(): await g()\n{source}")


@pytest.mark.parametrize("source", ["def f(:", "return 1", "def f(a, a): pass", "  x = 1\ny = 2"])
def test_a_syntax_error_passes_untouched(source: str) -> None:
    with pytest.raises(SyntaxError):
        analyse(source)


def test_python_warnings_are_left_to_the_shell() -> None:
    assert analyse("def f(): return '\\d' is 1").entry == "f"


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)


@given(st.lists(NAMES, min_size=1))
def test_every_defined_function_can_be_the_entry(names: list[str]) -> None:
    source = "\n".join(f"def {name}(): pass" for name in names)
    assert analyse(source).entry == names[-1]
    assert all(analyse(source, name).entry == name for name in names)


@pytest.mark.parametrize(
    "statement",
    [
        "open('a.txt')",
        "open('data/a')",
        "open('a.txt', 'rb')",
        "Path('a.txt').read_text()",
        "pathlib.Path('a').read_bytes()",
        "np.load('w.npy')",
        "pd.read_csv('x/y.csv', sep=';')",
        "joblib.load('model.joblib')",
        "np.load('weights/' + 'w.npy')",
        "open(os.path.join('data', 'x.csv'))",
        "pd.read_csv(Path('data') / 'x.csv')",
        "(pathlib.Path('data') / 'sub' / 'x').open()",
        "open('data' / Path('x'))",
        "Path('data', 'x').open('rb')",
        "Path('data').joinpath('x').read_text()",
        "(Path('data/x.csv').parent / 'y.csv').read_text()",
        "open(file='a.txt')",
        "open(f'data/{x}.csv')",
        "np.loadtxt(fname='a.txt')",
        "os.listdir('data')",
        "sqlite3.connect('x.db')",
        "open('data/' + str(x))",
    ],
)
def test_a_relative_read_is_warned_about(statement: str) -> None:
    (sentence,) = warnings(f"def f():\n    return {statement}\n", first_line=10)
    assert sentence.startswith("`f` reads the relative file '")
    assert "(line 11)" in sentence


@pytest.mark.parametrize(
    "statement",
    [
        "open('/etc/hosts')",
        "open('a.txt', 'w')",
        "open('a.txt', mode='a')",
        "open(name)",
        "open(0)",
        "open()",
        "pd.read_csv('https://example.org/x.csv')",
        "pd.read_csv('~/x.csv')",
        "np.load(path)",
        "json.loads('{\"a\": 1.5}')",
        "Path('C:/x.txt').read_text()",
        "config.load('production')",
        "open(folder + '/x.csv')",
        "open(f'{folder}/x.csv')",
        "open(x + '.csv')",
        "open('' + x)",
        "open('/data/' + x)",
        "sqlite3.connect(':memory:')",
        "os.listdir('/data')",
        "open(os.path.join(*folder))",
        "open(os.path.join('/data', 'x.csv'))",
        "(Path('/data') / 'x.csv').open()",
        "Path('x.csv').open('w')",
        "(Path('/data/x.csv').parent / 'y.csv').read_text()",
        "(made.parent / 'y.csv').read_text()",
        "Path('x.csv').open(mode='a')",
        "gzip.open('x.gz', 'wb')",
        "'x.csv'.open()",
        "open(f'{x}.csv')",
        "open(f'/data/{x}.csv')",
    ],
)
def test_other_calls_are_not_warned_about(statement: str) -> None:
    assert warnings(f"def f():\n    return {statement}\n") == ()


def test_a_relative_file_that_a_variable_names_is_warned_about() -> None:
    (sentence,) = warnings("def f():\n    p = 'a.txt'\n    return open(p)\n")
    assert sentence.startswith("`f` reads the relative file 'a.txt' (line 3)")
    assert warnings("def f(x):\n    p = 'a'\n    p = x\n    return open(p)\n") == ()
    assert warnings("def f(x):\n    for p in x: open(p)\n    p = 'a'\n") == ()


@pytest.mark.parametrize(
    "arguments", ["x, p='m.bin'", "*, p='m.bin'", "p='m.bin', /", "p=Path('m.bin')"]
)
def test_a_relative_default_of_a_parameter_is_warned_about(arguments: str) -> None:
    (sentence,) = warnings(f"def f({arguments}):\n    return open(p)\n")
    assert sentence.startswith("`f` reads the relative file 'm.bin' (line 2)")


@pytest.mark.parametrize(
    "source",
    [
        "def f(p='m.bin'):\n    p = '/data/' + p\n    return open(p)\n",
        "def f(p='/m.bin'):\n    return open(p)\n",
        "def f(p=None):\n    return open(p)\n",
        "def f(p='m.bin'):\n    def g(p):\n        return open(p)\n    return g\n",
    ],
)
def test_a_name_that_is_bound_anew_is_no_default(source: str) -> None:
    assert warnings(source) == ()


def test_reads_outside_of_functions_happen_in_the_notebook() -> None:
    assert warnings("text = open('a.txt').read()\ndef f(): return text") == ()


def test_a_global_that_is_looked_up_by_a_text_is_told() -> None:
    source = "def f():\n    n\n    return globals()['n'], globals()['m'], globals()[k]"
    (sentence,) = warnings(source, captured={"n": 1})
    assert sentence == (
        "`f` takes the global `m` from globals() (line 3), so it does not travel along; "
        "write its name alone"
    )


def test_a_write_to_a_global_names_function_and_line() -> None:
    (sentence,) = warnings("def f():\n    def g():\n        global n\n        n = 1\n")
    assert sentence.startswith("`g` writes to the global `n` (line 3)")


def test_a_write_by_way_of_globals_is_one_to_a_global() -> None:
    (sentence,) = warnings("def f():\n    globals()['tot'] = 1\n")
    assert sentence.startswith("`f` writes to the global `tot` (line 2)")
    (sentence,) = warnings("def f(k):\n    globals()[k] = 1\n")
    assert sentence.startswith("`f` writes to the global `globals()[k]`")


def test_text_that_does_not_parse_gives_no_warnings() -> None:
    assert warnings("key=lambda x: x)") == ()


def test_files_that_travel_along_may_be_read_by_a_name_that_is_put_together() -> None:
    source = "def f(x):\n    return open(f'data/{x}.csv')\n"
    assert warnings(source, files=["data/a.csv"]) == ()
    assert len(warnings(source, files=["other/a.csv"])) == 1
