"""Options, commands, settings, make targets and module folders are documented, and exist.

``python tests/test_docs.py`` writes the listing of options into README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

import fal_notebook
from fal_notebook import cli
from fal_notebook.options import help_text, option_help

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PACKAGE = Path(fal_notebook.__file__).parent
BEGIN, END = "<!-- options -->\n", "<!-- end of options -->"


def read(name: str) -> str:
    return (ROOT / name).read_text()


def with_listing(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}```\n{help_text()}\n```\n{END}{rest.partition(END)[2]}"


def commands(
    group: click.Group = cli.commands, prefix: str = ""
) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def make_targets() -> set[str]:
    return set(re.findall(r"^#   make (\w+)", read("Makefile"), re.MULTILINE))


def test_readme_lists_every_option_as_the_help_does() -> None:
    assert with_listing(README.read_text()) == README.read_text(), "run: python tests/test_docs.py"


def test_readme_groups_every_option() -> None:
    groups = README.read_text().partition("| what it is about |")[2].partition(BEGIN)[0]
    grouped = set(re.findall(r"`(\w+)`", groups))
    known = {option.name for option in option_help()}
    assert grouped - known == set()
    # Said elsewhere: the name stands in front; there is one target, one kind and one Python.
    assert known - grouped <= {"name", "target", "kind", "python_version"}


def test_readme_names_every_command_with_its_options_and_no_other() -> None:
    text = README.read_text()
    known = dict(commands())
    for name, command in known.items():
        assert f"%fal {name}" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(word in text for word in option.opts), f"{name} {option.opts}"
    named = re.findall(r"(?:%fal|^fal-notebook) ([a-z-]+(?: [a-z]+)?)", text, re.MULTILINE)
    for words in named:
        assert words in known or words.split()[0] in known, f"{words} is no command"


def test_make_targets_and_readme_name_the_same() -> None:
    named = set(re.findall(r"`?\bmake ([a-z]+)`", README.read_text()))
    assert named == make_targets()


def test_readme_names_every_setting() -> None:
    sources = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for setting in re.findall(r"\bsetting\(\s*\"(\w+)\"", sources):
        assert f"`{setting}`" in README.read_text()


def test_contributing_names_every_module_folder_and_only_modules_that_exist() -> None:
    text = read("CONTRIBUTING.md")
    for folder in {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}:
        assert f"`{folder.relative_to(PACKAGE)}/" in text
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    modules |= {str(path.relative_to(ROOT)) for path in (ROOT / "labextension").glob("*.py")}
    part = text.partition("## The way of a cell")[2].partition("\n## ")[0]
    for name in re.findall(r"`([\w/]+\.py)`", part):
        assert name in modules, f"{name} is not there"


if __name__ == "__main__":
    README.write_text(with_listing(README.read_text()))
