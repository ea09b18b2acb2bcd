"""Apps of a pyproject.toml: what their tables may say, where the file is, and deploying them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_cli import command, run

from fal_notebook import Handle, project
from fal_notebook.container import ContainerImage
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import CellError, ConflictError, GatewayError, OptionError
from fal_notebook.project_keys import OPTIONS
from fal_notebook.project_modules import fresh, on_path

APP = "[tool.fal.apps.my-server]\n"
# As the documents have them.
SERVER = (
    APP + 'auth = "private"\nmachine_type = "GPU-A100"\nexposed_port = 8000\nkeep_alive = 300\n\n'
)
IMAGE = "[tool.fal.apps.my-server.image]\n"
DOCKERFILE = SERVER + IMAGE + 'dockerfile = "Dockerfile"\n'
REFERENCE = (
    SERVER + IMAGE + 'image = "my-org/my-server:latest"\n'
    'cmd = ["your-server", "--host", "0.0.0.0", "--port", "8000"]\n'
)
COMMAND = (
    SERVER + IMAGE + 'dockerfile = "Dockerfile"\nentrypoint = ["your-server"]\n'
    'cmd = ["--host", "0.0.0.0", "--port", "8000"]\n'
)
# Every key of fal 1.83.0 that is an option, with a value.
EVERY = {
    "name": '"other"',
    "auth": '"shared"',
    "team": '"us"',
    "deployment_strategy": '"recreate"',
    "app_scale_settings": "true",
    "requirements": '["numpy>=2"]',
    "python_version": '"3.11"',
    "machine_type": '["GPU-H100", "GPU-A100"]',
    "num_gpus": "2",
    "regions": '["us-east"]',
    "keep_alive": "1",
    "min_concurrency": "1",
    "max_concurrency": "2",
    "max_multiplexing": "3",
    "concurrency_buffer": "4",
    "concurrency_buffer_perc": "5",
    "scaling_delay": "6",
    "request_timeout": "7",
    "request_start_timeout": "8",
    "startup_timeout": "9",
    "exposed_port": "8000",
    "metrics_port": "9090",
    "private_logs": "true",
    "secrets": '["TOKEN"]',
    "data_mounts": '["/data"]',
    "app_files": '["a.txt"]',
    "app_files_ignore": '["b"]',
    "app_files_context_dir": '"."',
    "skip_retry_conditions": '["timeout"]',
    "retry_config": "{server_error = {retries = 2}}",
    "termination_grace_period_seconds": "10",
    "health_check": '{path = "/health", method = "GET", call_regularly = false}',
}
UNKNOWN = "[tool.fal] has the unknown key"
OF_APP = "keep_alive is said of an app: under [tool.fal.apps.NAME]"
REFUSED = {
    "keep_alives = 3": "line 2: {t} has the unknown key 'keep_alives'; did you mean 'keep_alive'?",
    "serve = true": "line 2: {t} has the unknown key 'serve'; that option is given in the code",
    "zzz = 1": "line 2: {t} has the unknown key 'zzz'; it may have _scheduler,",
    "\n# a comment\nkeep_alive = '5'": "line 4: keep_alive='5' is not allowed: a whole number of",
    "auth = 'privat'": "line 2: auth='privat' is not allowed: private, public or shared",
    "private_logs = 1": "line 2: private_logs=1 is not allowed: true or false",
    "exposed_port = 65536": "line 2: exposed_port=65536 is not allowed",
    "python_version = 3.11": "line 2: python_version=3.11 is not allowed",
    "regions = ['mars']": "line 2: regions=['mars'] is not allowed",
    "machine_type = [1]": "line 2: machine_type=[1] is not allowed",
    "name = 'a b'": "line 2: name='a b' is not allowed: letters",
    "ref = 5": "line 2: ref=5 is not allowed: text such as 'app.py::MyApp'",
    "ref = ''": "line 2: ref='' is not allowed",
    "image = 'python'": "line 2: image='python' is not allowed: a table with dockerfile or image",
    "python_entry_point = 'a.b'": "python_entry_point='a.b' is not of the form module:Symbol",
    "keep_alive = 5": "line 1: {t} has neither ref nor python_entry_point nor an image",
    "ref = 'a.py'\npython_entry_point = 'a:b'": "line 3: {t} has both ref and python_entry_point",
    "ref = 'a.py'\nmin_concurrency = 3\nmax_concurrency = 1": "line 3: min_concurrency=3 is above",
    "ref = 'a.py'\napp_files_ignore = ['a']": "line 3: app_files_ignore needs app_files",
    "no_scale = true\napp_scale_settings = true": "line 2: no_scale is the old opposite",
    "requirements = ['./nothing']": "line 2: requirements names ./nothing, but",
    "requirements = [\n  'a b',\n]": "line 2: requirements=['a b'] is not allowed",
    "health_check = {path = '/', method = 'PUT'}": "line 2: health_check is not allowed",
    "[tool.fal.apps.my-server.health_check]\npath = '/'\ntimeout_second = 3": (
        "line 4: health_check is not allowed: there is no field 'timeout_second' (did you mean"
    ),
    "[tool.fal.apps.my-server.retry_config]\ntimeout.retries = 'x'": "line 3: retry_config is not",
    "image = {}": "line 2: [tool.fal.apps.my-server.image] has neither dockerfile nor image",
    "image = {dockerfile = 'a', image = 'b'}": "has both dockerfile and image",
    "image = {image = ''}": "line 2: image='' is not allowed",
    "image = {image = 'a b'}": "line 2: image='a b' is no reference",
    "image = {dockerfile = 'Nowhere'}": "line 2: cannot read the Dockerfile",
    "image = {image = 'a'}": "line 1: {t} is an image without code, so it needs exposed_port",
    IMAGE + "image = 'a'\nbuild_args = {A = 'b'}": "line 4: build_args is for a Dockerfile",
    IMAGE + "image = 'a'\nsecrets = {A = 'b'}": "line 4: secrets is for a Dockerfile",
    IMAGE + "image = 'a'\ncontext_dir = 'x'": "line 4: [tool.fal.apps.my-server.image] has the unk",
    IMAGE + "image = 'a'\ncmds = 'x'": "did you mean 'cmd'?",
    IMAGE + "image = 'a'\ncmd = 3": "line 4: cmd=3 is not allowed: one text or a list of texts",
    IMAGE
    + "image = 'a'\ncmd = 'a \"b'": "line 4: cmd='a \"b' is not allowed: it is cut into words",
    IMAGE + "image = 'a'\nregistries = {a = {username = 'u'}}": "line 4: registries is not allowed",
}


def read(folder: Path, text: str) -> project.Project:
    (folder / "pyproject.toml").write_text(text)
    return project.read(folder / "pyproject.toml")


def image_of(folder: Path, text: str) -> Any:
    return read(folder, text).app("my-server").options["image"]


# --- what a table says --------------------------------------------------------------------------
def test_the_examples_of_the_documents_are_read_as_written(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.11-slim\n")
    for text in (DOCKERFILE, REFERENCE, COMMAND):
        options = read(tmp_path, text).app("my-server").options
        del options["image"]
        assert options == {
            "name": "my-server",
            "auth": "private",
            "machine_type": "GPU-A100",
            "exposed_port": 8000,
            "keep_alive": 300,
        }
    plain = image_of(tmp_path, DOCKERFILE)
    assert plain == ContainerImage("FROM python:3.11-slim\n", context_dir=tmp_path)
    pulled = image_of(tmp_path, REFERENCE)
    assert pulled.dockerfile_str == "FROM my-org/my-server:latest\n"
    assert pulled.cmd[0] == "your-server"
    commanded = image_of(tmp_path, COMMAND)
    assert (commanded.entrypoint, commanded.cmd[0]) == (["your-server"], "--host")
    assert image_of(tmp_path, APP + 'exposed_port = 1\nimage.image = "a/b"') == "a/b"


def test_every_key_of_fals_is_taken_with_its_value(tmp_path: Path) -> None:
    assert set(EVERY) == OPTIONS
    lines = "".join(f"{key} = {value}\n" for key, value in EVERY.items())
    ignored = '_scheduler = "nomad"\n_scheduler_options = {a = 1}\n'
    app = read(tmp_path, f'{APP}ref = "a.py::f"\n{ignored}{lines}').app("my-server")
    assert set(app.options) == OPTIONS
    assert app.options["health_check"] == {
        "path": "/health",
        "method": "GET",
        "call_regularly": False,
    }
    assert app.options["app_files_context_dir"] == str(tmp_path)
    assert len(app.notices) == 2


def test_an_image_has_all_its_keys(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("FROM a\n")
    image = image_of(
        tmp_path,
        f'{APP}ref = "a.py"\n{IMAGE}dockerfile = "docker/Dockerfile"\nbuild_args = {{A = "1"}}\n'
        'cmd = "x"\n[tool.fal.apps.my-server.image.secrets]\nTOKEN = "$TOKEN"\n'
        '[tool.fal.apps.my-server.image.registries."r.example.com"]\n'
        'username = "u"\npassword = "$PASSWORD"\n',
    )
    assert (image.build_args, image.cmd) == ({"A": "1"}, "x")
    assert image.context_dir == str(tmp_path)  # of the file, as in fal, not of the Dockerfile
    assert image.secrets["TOKEN"].get_secret_value() == "$TOKEN"
    assert image.registries["r.example.com"].username == "u"


@pytest.mark.parametrize("lines", REFUSED)
def test_a_mistake_is_one_sentence_with_file_and_line(tmp_path: Path, lines: str) -> None:
    found = read(tmp_path, APP + lines)
    with pytest.raises(OptionError) as refusal:
        found.app("my-server")
    assert REFUSED[lines].format(t="[tool.fal.apps.my-server]") in str(refusal.value)
    assert str(refusal.value).startswith(f"{tmp_path / 'pyproject.toml'}, line ")
    assert "\n" not in str(refusal.value)


def test_no_credential_is_shown(tmp_path: Path) -> None:
    wrong = ["password = 'hunter22x'\nuser = 'u'", "username = 'u'\npassword = {a = 'hunter22x'}"]
    for lines in wrong:
        table = f"{IMAGE}image = 'a'\n[tool.fal.apps.my-server.image.registries.r]\n{lines}\n"
        with pytest.raises(OptionError) as refusal:
            image_of(tmp_path, APP + table)
        assert "hunter" not in str(refusal.value)


def test_other_apps_and_tables_may_be_wrong(tmp_path: Path) -> None:
    text = f'{APP}ref = "a.py"\n[tool.fal.apps.two]\nzzz = 1\n[tool.ruff]\nx = 1\n'
    assert read(tmp_path, text).app("my-server").ref == "a.py"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.ruff]\n", "pyproject.toml: there is no app: no table [tool.fal.apps.NAME]"),
        ("\n[tool.fal.app.x]\n", "line 2: there is no app: no table [tool.fal.apps.NAME]; [tool."),
        ("[tool.fal]\napps = 3", "line 2: tool.fal.apps is to be a table"),
        ("[tool.fal.apps]\nmy-server = 3", "line 2: tool.fal.apps.my-server is to be a table"),
        ("[tool.fal.apps]\n", "there is no app"),
        (f"[tool.fal]\nkeep_alive = 3\n{APP}", f"line 2: {UNKNOWN} 'keep_alive'; {OF_APP}"),
        (f"[tool.fal]\nkeep_alives = 3\n{APP}", "'keep_alives'; keep_alive is said of an app"),
        (f"{APP}[tool.fal.image]\n", f"line 2: {UNKNOWN} 'image'; image is said of an app: under"),
        (f"{APP}[tool.fal.app.x]\n", f"line 2: {UNKNOWN} 'app'; did you mean 'apps'?"),
        (f"{APP}[tool.fal.zzz]\n", f"line 2: {UNKNOWN} 'zzz'; apps are all that it may have"),
        ("[tool.fal.apps.my-servr]\n", "has no app 'my-server'; did you mean 'my-servr'?"),
        ("[tool.fal.apps.z]\n", "has no app 'my-server'; there are z"),
        ("[tool.fal.apps.my-server\n", "line 1: this is no TOML: Expected ']'"),
    ],
)
def test_what_is_no_app_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(OptionError) as refusal:
        read(tmp_path, text).app("my-server")
    assert words in str(refusal.value)


def test_requirements_that_are_folders_become_absolute(tmp_path: Path) -> None:
    for name in ("lib", "lib/inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").touch()
    (tmp_path / "numpy").mkdir()  # a folder without a project is none
    text = f'{APP}ref = "a.py"\nrequirements = [["numpy", "."], ["lib[x]", "./lib"]]\n'
    app = read(tmp_path, text).app("my-server")
    lib = f"{tmp_path}/lib"
    assert app.options["requirements"] == [["numpy", str(tmp_path)], [f"{lib}[x]", lib]]
    text = f'{APP}ref = "a.py"\nrequirements = ["./inner"]\nrequirements_context_dir = "lib"\n'
    app = read(tmp_path, text).app("my-server")
    assert app.options["requirements"] == [f"{lib}/inner"]


# --- where the file is --------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(APP)
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.ruff]\n")
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


def test_the_nearest_file_about_fal_is_found(tree: Path) -> None:
    assert project.find() == tree / "pyproject.toml"
    (tree / "a" / "pyproject.toml").write_text("[tool.fal]\n")
    assert project.find() == tree / "a" / "pyproject.toml"


def test_none_is_looked_for_above_a_repository(tree: Path) -> None:
    (tree / "a" / ".git").mkdir()
    with pytest.raises(OptionError, match=r"no pyproject\.toml with .* was found in .*/a/b or"):
        project.find()


def test_a_file_or_its_folder_is_given(tree: Path) -> None:
    assert project.find("..") == tree / "a" / "pyproject.toml"
    assert project.find(str(tree / "pyproject.toml")) == tree / "pyproject.toml"
    with pytest.raises(OptionError, match=r"pyproject names .*/b/pyproject\.toml, where there is"):
        project.find(".")


# --- deploying ----------------------------------------------------------------------------------
CODE = """
import fal_notebook as fal
class Kept(fal.App, keep_alive=33):
    app_name, app_auth = "of-the-class", "public"
    @fal.endpoint("/")
    def go(self, n: int) -> int:
        return n + 1
def plain(n: int) -> int:
    return n + 2
"""
TABLES = """
[tool.fal.apps.pp-kept]
ref = "code/app.py::Kept"
keep_alive = 5
max_concurrency = 2
auth = "shared"
exposed_port = 8080

[tool.fal.apps.pp_plain]
ref = "code/app.py::plain"
machine_type = "GPU-A100"

[tool.fal.apps.pp-entry]
python_entry_point = "pp_package.app:entry"
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateway: GatewayInfo) -> Iterator[Path]:
    """A folder with apps, and the working folder somewhere below it."""
    for name in ("code", "src/pp_package", "below"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "code" / "app.py").write_text(CODE)
    package = tmp_path / "src" / "pp_package"
    (package / "__init__.py").write_text("from .deep import step\n")
    (package / "deep.py").write_text("def step(n):\n    return n + 100\n")
    (package / "app.py").write_text(
        "from pp_package import step\ndef entry(n: int) -> int:\n    return step(n)\n"
    )
    (tmp_path / "pyproject.toml").write_text(TABLES)
    monkeypatch.chdir(tmp_path / "below")
    yield tmp_path
    for name in ("pp-kept", "pp-plain", "pp-entry"):
        with suppress(GatewayError):
            Handle("tester", name).delete()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_an_app_is_deployed_by_its_name_from_a_folder_below(tables: Path) -> None:
    deployed = command("deploy", "pp-kept", "max_concurrency=3")
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert "pp-kept: active (revision 1)" in deployed.stdout
    assert "note: exposed_port is for servers" in deployed.stdout
    handle = Handle("tester", "pp-kept")
    assert handle["/"](n=1) == 2
    options = handle.status()["options"]
    # The line wins over the class, the class over the table; name and auth are the table's.
    assert (options["max_concurrency"], options["keep_alive"]) == (3, 33)
    assert options["auth"] == "shared"


def test_an_app_belongs_to_the_file_that_has_it(tables: Path, tmp_path_factory) -> None:
    run("deploy", "pp-plain")
    handle = Handle("tester", "pp-plain")
    assert handle.status()["notebook"] == f"project {tables / 'pyproject.toml'}"
    assert "up to date" in run("deploy", "pp_plain", f"pyproject={tables}")
    other = tmp_path_factory.mktemp("other") / "pyproject.toml"
    other.write_text(TABLES.replace("code/", f"{tables}/code/"))
    with pytest.raises(ConflictError):
        run("deploy", "pp-plain", f"pyproject={other}")
    taken = run("deploy", "pp-plain", f"pyproject={other}", "takeover=true")
    assert f"note: taken over from project {tables}" in taken


def test_a_machine_type_that_is_not_here_is_clamped_with_a_note(tables: Path) -> None:
    shown = run("deploy", "pp-plain")
    assert "note: this host has no machine of type GPU-A100" in shown
    assert Handle("tester", "pp-plain")(1) == 3


def test_an_entry_point_travels_by_value_and_is_read_anew(tables: Path) -> None:
    sys.path.insert(0, str(tables / "src"))
    try:
        import pp_package  # type: ignore[import-not-found]

        run("deploy", "pp-entry")
        handle = Handle("tester", "pp-entry")
        assert handle(1) == 101
        (tables / "src" / "pp_package" / "deep.py").write_text("def step(n):\n    return n - 1\n")
        run("deploy", "pp-entry")
        assert handle(1) == 0
        assert sys.modules["pp_package"] is pp_package
        assert pp_package.step(1) == 101  # what the notebook has stays what it was
    finally:
        sys.path.remove(str(tables / "src"))
        for name in [name for name in sys.modules if name.startswith("pp_package")]:
            del sys.modules[name]


@pytest.mark.parametrize("way", ['ref = "two.py::told"', 'python_entry_point = "two:told"'])
def test_a_module_beside_it_travels_along_and_is_read_anew(tables: Path, way: str) -> None:
    (tables / "two.py").write_text(
        "import beside\ndef told():\n    import waits\n    return beside.word() + waits.more()\n"
    )
    (tables / "waits.py").write_text("def more(): return 0\n")
    (tables / "beside.py").write_text("from pp_package import step\ndef word(): return step(1)\n")
    (tables / "late.py").write_text("WORD = 'late'\n")
    (tables / "pyproject.toml").write_text(f"[tool.fal.apps.pp-plain]\n{way}\n")
    handle = Handle("tester", "pp-plain")
    run("deploy", "pp-plain", "local_python_modules=late")
    assert handle() == 101
    assert handle.status()["options"]["local_python_modules"] == [
        *("beside", "late", "pp_package"),
        *(["two"] if "entry" in way else []),
        "waits",
    ]
    (tables / "waits.py").write_text("def more(): return 5\n")
    assert "active (revision 2)" in run("deploy", "pp-plain")
    assert handle() == 106


def test_modules_that_are_installed_in_the_folder_are_no_part_of_the_project(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tables / ".venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "pp_installed.py").write_text("")
    (tables / "pp_own.py").write_text("")
    monkeypatch.syspath_prepend(str(installed))
    with on_path(tables), fresh(tables) as read:
        importlib.import_module("pp_installed")
        importlib.import_module("pp_own")
        assert read("") == ["pp_own"]
    with on_path(tables), fresh(tables) as read:
        assert "pp_own" not in sys.modules
        assert read("") == []
    assert sys.modules.pop("pp_own").__file__ == str(tables / "pp_own.py")
    del sys.modules["pp_installed"]


def test_the_path_of_modules_is_as_before(tables: Path) -> None:
    before = list(sys.path)
    run("deploy", "pp-entry")
    assert sys.path == before


WRONG: list[tuple[Callable[[str], str], type[Exception], str]] = [
    (
        lambda t: t.replace("code/app.py::plain", "nowhere.py"),
        CellError,
        r"toml, line 10: ref='nowhere.py': .*nowhere.py cannot be read: No such file",
    ),
    (
        lambda t: t.replace("::plain", "::nobody"),
        CellError,
        r"toml, line 10: ref='code/app.py::nobody': .*app.py does not define `nobody`; it defines",
    ),
    (
        lambda t: t.replace("machine_type", "machine_typ"),
        OptionError,
        "did you mean 'machine_type'",
    ),
]


@pytest.mark.parametrize(("change", "kind", "words"), WRONG)
def test_what_cannot_be_deployed_is_one_sentence(tables: Path, change, kind, words) -> None:
    (tables / "pyproject.toml").write_text(change(TABLES))
    with pytest.raises(kind, match=words) as refusal:
        run("deploy", "pp-plain")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("pp_nothing.app:f", r"there is no module 'pp_nothing' in .*, in its src or among"),
        ("pp_package.none:f", r"there is no module 'pp_package\.none'"),
        ("pp_package.app:nobody", r"pp_package\.app has no function or class 'nobody'"),
    ],
)
def test_an_entry_point_that_is_not_there_is_one_sentence(tables: Path, entry, words) -> None:
    (tables / "pyproject.toml").write_text(TABLES.replace("pp_package.app:entry", entry))
    with pytest.raises(CellError, match=words) as refusal:
        run("deploy", "pp-entry")
    assert f"{tables / 'pyproject.toml'}, line 14: " in str(refusal.value)


def test_what_the_code_raises_leaves_as_it_is(tables: Path) -> None:
    (tables / "code" / "app.py").write_text("def plain(): pass\n1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        run("deploy", "pp-plain")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pp-other"], "has no app 'pp-other'; did you mean 'pp-"),
        (["pp-plain", "pyproject=nowhere"], "pyproject names .*/nowhere, where there is no file"),
        (["a.py", "pyproject=."], r"pyproject is for the name of an app, and a\.py is a file"),
        (["pp-plain", "dry_run=true"], "takes neither entry nor dry_run"),
        (["pp-plain", "keep_alives=1"], "did you mean 'keep_alive'"),
    ],
)
def test_a_wrong_line_is_one_sentence(tables: Path, words, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        run("deploy", *words)
