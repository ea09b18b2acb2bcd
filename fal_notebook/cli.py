"""The ``fal-notebook`` command; ``%fal`` runs the same commands inside a notebook.

Each command returns what it has to show (None for nothing): a terminal prints it, a notebook
displays it.
"""

from __future__ import annotations

import functools
import getpass
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import click

from fal_notebook import __version__, client_env, discovery, display, settings, stats_view, sync
from fal_notebook.client import Client
from fal_notebook.command_help import Commands
from fal_notebook.envs import MAIN, check_env_name
from fal_notebook.exceptions import DeployError, FalNotebookError, OptionError
from fal_notebook.handle import Handle, shared_client
from fal_notebook.option_types import check_secret_name
from fal_notebook.options import app_name
from fal_notebook.registries import from_environment, literal
from fal_notebook.terminal_line import TerminalLine

if TYPE_CHECKING:
    from fal_notebook.deploying import Deployment
    from fal_notebook.magics.output import Output
    from fal_notebook.simulation_view import SimulationView

_PART = " The beginning or end of its id is enough."


class _Amount(click.FloatRange):
    """A number within its bounds; click's own lets NaN through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no amount; give a number such as 1.5", param, ctx)
        return number


class _Given(click.types.StringParamType):
    """A text that is not empty, as a variable without a value would be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        if not value:
            self.fail("it is empty; leave the option out to see all", param, ctx)
        return str(super().convert(value, param, ctx))


_GIVEN = _Given()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fal-notebook")
def commands() -> None:
    """See and steer the apps that notebooks deployed on this machine."""


@commands.command()
@click.argument("name", required=False)
def status(name: str | None) -> display.Table:
    """Show every app, or one with all options in force."""
    if name is None:
        return display.apps_table(sync.wait(_client().apps()))
    return display.status_table(_handle(name).status())


@commands.command()
@click.argument("name", required=False)
def runners(name: str | None) -> display.Table:
    """Show the runners of an app, or of all apps."""
    if name is None:
        return display.runners_table(sync.wait(_client().all_runners()))
    handle = _handle(name)
    found = handle.runners()
    return display.runners_table(found, None if found else handle.status())


@commands.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until interrupted.")
@click.option("--runner", type=_GIVEN, metavar="ID", help="Lines of this runner only." + _PART)
@click.option("--request", type=_GIVEN, metavar="ID", help="Lines of this request only." + _PART)
@click.option("--level", type=_GIVEN, help="Lines of at least this level, such as warning.")
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    metavar="N",
    help="How many past lines.",
)
def logs(
    name: str, follow: bool, runner: str | None, request: str | None, level: str | None, tail: int
) -> Iterator[str]:
    """Show what an app's runners wrote."""
    lines = _handle(name).logs(follow, runner or "", request or "", tail, level or "")
    return (display.log_line(line) for line in lines)


@commands.command()
@click.argument("name")
@click.option("--request", type=_GIVEN, metavar="ID", help="Its input and traceback." + _PART)
def errors(name: str, request: str | None) -> display.Table | display.ErrorView:
    """Show the errors of an app's requests by type and place."""
    handle = _handle(name)
    if request:
        return display.ErrorView(handle.error(request))
    return display.errors_table(handle.errors())


@commands.command()
@click.argument("name")
def starts(name: str) -> display.Table:
    """Show what the last cold starts of an app's runners were made of."""
    from fal_notebook import cost_view

    return cost_view.starts_table(_handle(name).starts())


@commands.command()
@click.argument("name", required=False)
@click.option("--since", default="7d", show_default=True, metavar="DAYS", help="How far back.")
def cost(name: str | None, since: str) -> display.Table:
    """Show billed seconds per state of an app, or of all, and money where prices are set."""
    from fal_notebook import cost_view

    found = re.fullmatch(r"(\d{1,3})d?", since)
    if found is None or not int(found[1]):
        raise OptionError(f"--since is {since!r}; write a number of days, such as 7d")
    days = int(found[1])
    if name is None:
        return cost_view.cost_table(sync.wait(_client().all_costs(days)))
    return cost_view.cost_table(_handle(name).cost(days))


@commands.command()
@click.argument("name")
@click.option(
    "--since",
    type=click.Choice(list(stats_view.WINDOWS)),
    default="1h",
    show_default=True,
    help="Of how long.",
)
@click.option("--endpoint", default="", metavar="PATH", help="Of this one only, such as /generate.")
def stats(name: str, since: str, endpoint: str) -> stats_view.StatsView:
    """Show requests, errors and latencies of an app over time, by endpoint."""
    return stats_view.of(_handle(name), since, endpoint)


@commands.command("deploy", context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="NAME|FILE[::NAME]")
@click.argument("options", nargs=-1, metavar="KEY=VALUE…")
def deploy_function(target: str, options: tuple[str, ...]) -> display.DeployView | None:
    """Deploy an app of pyproject.toml (pyproject=PATH), or run a Python file and deploy its own.

    NAME is that of a table [tool.fal.apps.NAME] in the nearest pyproject.toml, from the working
    folder upwards. Of a file it is a function or an App class; options are those of a cell.
    """
    return _shown(lambda on_change: _deployed(target, _values(options), on_change))


@commands.command()
@click.argument("name")
def revisions(name: str) -> display.Table:
    """Show the revisions of an app, the newest first."""
    return display.revisions_table(_handle(name).revisions())


def _revision_number(word: str) -> int:
    if re.fullmatch("[1-9][0-9]{0,8}", word):
        return int(word)
    raise click.UsageError(
        f"REV is the number of a revision, as `%fal revisions NAME` shows them, not {word!r}"
    )


@commands.command()
@click.argument("name")
@click.argument("revision", required=False, type=_revision_number, metavar="[REV]")
def diff(name: str, revision: int | None) -> display.DiffView:
    """Show what changed since a revision, by default the last that served before."""
    return display.DiffView(name, _handle(name).diff(revision))


@commands.command()
@click.argument("name")
@click.argument("revision", required=False, type=_revision_number, metavar="[REV]")
def rollback(name: str, revision: int | None) -> display.DeployView | None:
    """Bring an earlier revision back, by default the last that served before."""
    from fal_notebook import rollouts

    who = _handle(name)
    return _shown(functools.partial(rollouts.rollback, who.owner, who.name, revision))


@commands.command()
@click.argument("name")
@click.option("--from", "source", required=True, metavar="ENV", help="Where it serves.")
@click.option("--to", default=MAIN, show_default=True, metavar="ENV", help="Where it is to serve.")
def promote(name: str, source: str, to: str) -> display.DeployView | None:
    """Copy what serves an app in one environment to another, without a build."""
    from fal_notebook import rollouts

    who = _handle(name)
    return _shown(functools.partial(rollouts.promote, who.owner, who.name, source, to))


def _shown(start: Callable[[Callable[[], None]], Deployment]) -> display.DeployView | None:
    """Follow a deploy to its end: in the cell that asks for it, else in the terminal."""
    output = _output()
    in_cell = not isinstance(output, TerminalLine)
    deployment = start(output.update)
    try:
        _followed(output, deployment)
    except FalNotebookError as error:
        if in_cell:  # which shows notes and log
            raise DeployError(str(error).splitlines()[0]) from None
        for note in (*deployment.progress.notices, *deployment.progress.payload.warnings):
            click.echo(f"note: {note}", err=True)
        raise
    except KeyboardInterrupt:
        program, name = click.get_current_context().find_root().info_name, deployment.handle.name
        click.echo(f"Detached: the deploy continues. Cancel it with: {program} cancel {name}")
        raise
    return None if in_cell else display.DeployView(deployment.progress)


@commands.command()
@click.argument("where", required=False, type=click.Choice(settings.TARGETS))
def target(where: str | None) -> str:
    """Say where cells deploy to that do not say it, or change that for this kernel."""
    if where is None:
        return f"cells deploy to {settings.target()}"
    if click.get_current_context().find_root().info_name != "%fal":
        raise click.UsageError(
            f"%fal target is for a notebook; here set FAL_NOTEBOOK_TARGET={where}, or write "
            f'target = "{where}" into {settings.config_file()}'
        )
    os.environ["FAL_NOTEBOOK_TARGET"] = where
    return f"cells of this kernel deploy to {where}, unless they say target=…"


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("options", nargs=-1, metavar="KEY=VALUE…")
def scale(name: str, options: tuple[str, ...]) -> display.Table:
    """Change scaling options of an app at once, such as keep_alive=60."""
    from fal_notebook.options import refuse_frozen

    names = (option.partition("=")[0].removeprefix("--") for option in options)
    refuse_frozen(name.replace("-", "_") for name in names)
    return display.status_table(_handle(name).scale(**_values(options)))


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.option("--trace", required=True, metavar="FILE", help="CSV of arrival and duration (s).")
@click.option(
    "--start",
    type=_Amount(0, 86400),
    help="Seconds of a start (else the median of the app's last).",
)
@click.argument("options", nargs=-1, metavar="KEY=VALUE…")
def simulate(
    name: str, trace: str, start: float | None, options: tuple[str, ...]
) -> SimulationView:
    """Say what an app's scaling, or another one, would make of a trace of requests."""
    from fal_notebook import simulation

    return simulation.of(_handle(name), trace, _values(options), start)


@commands.command()
@click.argument("name")
def image(name: str) -> display.ImageView:
    """Show an app's image: Dockerfiles, layers with their sizes, digest, labels."""
    handle = _handle(name)
    return display.ImageView(sync.wait(_client().image(handle.owner, handle.name)))


@commands.command()
@click.argument("name")
@click.argument("to", metavar="REGISTRY/REPO[:TAG]")
@click.option("--username", default="", metavar="USER", help="Instead of the app's credentials.")
@click.option(
    "--password-from",
    default="",
    metavar="NAME",
    help="The variable of the environment, or the stored secret, that holds the password.",
)
def push(name: str, to: str, username: str, password_from: str) -> Iterator[str]:
    """Send an app's image to a registry; its digest there comes last."""
    handle = _handle(name)
    if bool(username) != bool(password_from):
        raise click.UsageError("give --username and --password-from together, or neither")
    login = None
    if username:
        password = from_environment(f"${password_from}", os.environ)
        login = {"username": literal(username), "password": password}
    return sync.iterate(_client().push(handle.owner, handle.name, to, login))


@commands.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="In a terminal: do not ask.")
def prune(dry_run: bool, yes: bool) -> display.Table | str:
    """Remove images and containers that we made and that no app needs any more."""
    in_terminal = sys.stdin is not None and sys.stdin.isatty()
    if in_terminal and not (dry_run or yes):
        found = sync.wait(_client().prune_images(dry_run=True))
        if not found["images"] and not found["containers"]:
            return display.prune_table(found)
        click.echo(str(display.prune_table(found)))
        click.confirm("remove them?", abort=True)
    return display.prune_table(sync.wait(_client().prune_images(dry_run)))


@commands.command()
@click.argument("name")
def cancel(name: str) -> str:
    """Cancel the deploy of an app that is under way; what ran before stays."""
    handle = _handle(name)
    handle.cancel_deploy()
    return f"the deploy of {handle.name} is cancelled"


@commands.command()
@click.argument("name")
def delete(name: str) -> str:
    """Delete an app; its runners drain."""
    handle = _handle(name)
    handle.delete()
    return f"{handle.owner}/{handle.name} is deleted"


@commands.group(cls=Commands)
def gateway() -> None:
    """Start, stop or describe the gateway of this user."""


@gateway.command("start")
def start_gateway() -> str:
    """Start the gateway if none runs."""
    about = sync.wait(_client().about())
    return f"the gateway runs at {about['url']} (pid {about['pid']})"


@gateway.command("stop")
@click.option("--keep-runners", is_flag=True, help="Leave the runners to the next gateway.")
def stop_gateway(keep_runners: bool) -> str:
    """Stop the gateway and its runners."""
    state = settings.state_folder()
    runs = discovery.find(state) is not None
    if not runs and (keep_runners or not discovery.left_runners(state)):
        return "no gateway runs"
    # One that was killed left its runners: only a next one knows them, so it starts to end them.
    sync.wait(_client().stop_gateway(keep_runners))
    discovery.wait_until_gone(state)
    if runs:
        return "the gateway has stopped"
    return "no gateway ran; the runners that the last one had left have ended"


@gateway.command("status")
def gateway_status() -> display.Table | str:
    """Say where the gateway is, and its log."""
    state = settings.state_folder()
    if discovery.find(state) is None:
        return f"no gateway runs; its log is {state / 'gateway.log'}"
    about = sync.wait(_client().about())
    about["log"] = state / "gateway.log"
    return display.Table(("gateway", ""), list(about.items()), "")


@commands.group(cls=Commands)
def keys() -> None:
    """Keys with which others call private apps."""


@keys.command("create")
@click.option(
    "--scope",
    type=click.Choice(["API", "ADMIN"]),
    default="API",
    show_default=True,
    help="ADMIN is yours alone: it deploys, reads and deletes as you do.",
)
@click.option("--alias", default="", metavar="TEXT", help="A name to recognise it by.")
@click.option("--user", metavar="NAME", help="Whose it is; without it yours.")
def create_key(scope: str, alias: str, user: str | None) -> str:
    """Make a key and show it, for the only time."""
    key = sync.wait(_client().create_key(scope, alias, user))
    return f"{key['key']}\n(shown once; send it as 'Authorization: Key {key['id']}:…')"


@keys.command("list")
def list_keys() -> display.Table:
    """List the keys without their secrets."""
    return display.keys_table(sync.wait(_client().keys()))


@keys.command("revoke")
@click.argument("identity", metavar="KEY_ID")
def revoke_key(identity: str) -> str:
    """Refuse a key from now on."""
    sync.wait(_client().revoke_key(identity))
    return f"{identity} is revoked"


@commands.command("client-env")
@click.option("--sh", is_flag=True, help="For a shell: fal's Python client over TLS.")
@click.option("--python", is_flag=True, help="The same inside Python, with uploads.")
@click.option("--js", is_flag=True, help="For fal's JavaScript client.")
@click.option(
    "--key", "with_key", is_flag=True, help="Make one more key, named client-env, and put it in."
)
def show_client_env(with_key: bool, **kinds: bool) -> str:
    """Show what turns fal's own clients to this gateway."""
    asked = [kind for kind, is_asked in kinds.items() if is_asked]
    if len(asked) > 1:
        raise OptionError("give one of --sh, --python and --js, or none for all three")
    key = sync.wait(_client().create_key(alias="client-env"))["key"] if with_key else ""
    return client_env.text(_client(), asked[0] if asked else None, key)


@commands.group(cls=Commands)
def storage() -> None:
    """Files that were uploaded to the gateway."""


@storage.command("prune")
@click.option(
    "--older-than",
    type=_Amount(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Files uploaded, and uploads begun, before that; 0 for all.",
)
def prune_storage(older_than: float) -> str:
    """Remove stored files now; expired ones go by themselves."""
    gone = sync.wait(_client().prune_storage(older_than * 24 * 3600))
    return f"files removed: {gone['files']} ({gone['bytes'] / 1e6:.1f} MB)"


@commands.group(cls=Commands)
def secrets() -> None:
    """Secrets that apps get as environment variables (option secrets=NAME)."""


_ENV = click.option(
    "--env", default=MAIN, show_default=True, metavar="ENV", help="The environment of the apps."
)


# What else stands there may be the value: click would show it as an argument too many.
@secrets.command("set", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@click.argument("name")
@click.option("--from-env", is_flag=True, help="Take the value of the variable of that name.")
@_ENV
@click.pass_context
def set_secret(context: click.Context, name: str, from_env: bool, env: str) -> str:
    """Store a secret; its value is asked for, or read from a pipe, never written down."""
    if context.args or "=" in name:
        raise click.UsageError(
            "give the name alone: the value is asked for, read from a pipe or, with --from-env, "
            "from the environment"
        )
    if not name:
        raise click.UsageError("a secret needs a name")
    check_secret_name(name)
    if from_env and name not in os.environ:
        raise click.UsageError(f"the environment has no variable {name}")
    try:
        value = os.environ[name] if from_env else _asked(name)
        value.encode()
    except UnicodeError:
        raise click.UsageError(
            f"the value of {name} is no UTF-8 text; encode it first, such as with base64"
        ) from None
    if not value:
        raise click.UsageError(f"the value of {name} is empty")
    sync.wait(_client().set_secret(name, value, env))
    return f"{name} is stored{_of(env)}; runners that start from now on see it"


@secrets.command("list")
def list_secrets() -> display.Table:
    """List the secrets by name."""
    return display.secrets_table(sync.wait(_client().secrets()))


@secrets.command("delete")
@click.argument("name")
@_ENV
def delete_secret(name: str, env: str) -> str:
    """Remove a secret."""
    check_secret_name(name)
    sync.wait(_client().delete_secret(name, env))
    return f"{name} is deleted{_of(env)}"


def _of(env: str) -> str:
    return "" if env == MAIN else f" in {env}"


@commands.group(cls=Commands)
def env() -> None:
    """Environments: apps with secrets of their own, deployed with env=NAME."""


@env.command("create")
@click.argument("env", metavar="NAME")
def create_env(env: str) -> str:
    """Make an environment."""
    check_env_name(env)
    sync.wait(_client().create_env(env))
    return f"{env} is there; deploy to it with env={env}, store secrets with --env {env}"


@env.command("list")
def list_envs() -> display.Table:
    """List the environments with their apps."""
    return display.envs_table(sync.wait(_client().envs()))


@env.command("delete")
@click.argument("env", metavar="NAME")
def delete_env(env: str) -> str:
    """Delete an environment that has no apps, with its secrets."""
    check_env_name(env)
    sync.wait(_client().delete_env(env))
    return f"{env} is deleted, with its secrets"


def run(
    arguments: list[str], prog_name: str, variables: MutableMapping[str, Any] | None = None
) -> Any:
    """Run a command and return what it has to show.

    Parameters
    ----------
    arguments : list of str
        The words of the command line.
    prog_name : str
        What help calls the command.
    variables : mapping, optional
        The notebook's, for values of options that name them, and for the handle of an app of
        pyproject.toml that is deployed.

    Raises
    ------
    click.ClickException, FalNotebookError
        One sentence each.
    """
    try:
        return commands.main(
            arguments,
            prog_name=prog_name,
            standalone_mode=False,
            obj={} if variables is None else variables,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        return error.format_message()  # the help of a group


def main() -> None:
    """Run the command line of this process; a refusal is one line and status 1 or 2."""
    try:
        for line in as_lines(run(sys.argv[1:], "fal-notebook")):
            print(line, flush=True)
    except click.ClickException as error:
        print(f"fal-notebook: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except FalNotebookError as error:
        print(f"fal-notebook: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:  # a reader such as head has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def as_lines(shown: Any) -> Iterator[str]:
    """Return a result as lines of text, as they come."""
    if shown is None or isinstance(shown, int):
        return iter(())
    return shown if isinstance(shown, Iterator) else iter([str(shown)])


def _asked(name: str) -> str:
    """Return what is typed unseen, or all that a pipe gives, without the line's end."""
    asked_by_kernel = getpass.getpass.__module__ != "getpass"  # a kernel puts its own there
    if asked_by_kernel or sys.stdin.isatty():
        try:
            return str(click.prompt(name, hide_input=True))
        except NotImplementedError:  # what IPython's StdinNotImplementedError is
            raise click.UsageError(
                f"this notebook cannot ask for a value: put it into the variable {name} of the "
                "environment and add --from-env"
            ) from None
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def _client() -> Client:
    return shared_client()


def _handle(name: str) -> Handle:
    """Return the handle of ``name`` or ``owner/name``; ``_`` stands for ``-``."""
    owner, _, app = name.rpartition("/")
    return Handle(app_name(owner) if owner else settings.owner(), app_name(app))


def _output() -> TerminalLine | Output:
    """Return where a deploy is shown: in the cell of a kernel, else on a line of the terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if not hasattr(shell, "kernel"):
        return TerminalLine()
    from fal_notebook.magics.output import Output

    return Output(shell, waited=True)


def _followed(output: TerminalLine | Output, deployment: Deployment) -> None:
    try:
        output.follow(deployment.progress)
        deployment.handle.wait()
    finally:
        output.end()


def _values(options: tuple[str, ...]) -> dict[str, Any]:
    from fal_notebook.magics.parse import parse_line

    variables = click.get_current_context().obj
    extra, values = parse_line(" ".join(map(_quoted, options)), variables)
    if extra is not None:
        raise click.UsageError(f"expected key=value, got {extra!r}")
    return values


def _deployed(target: str, values: dict[str, Any], on_change: Callable[[], None]) -> Deployment:
    from fal_notebook import program, project, project_deploy

    given = values.pop("pyproject", None)
    if not project.is_app_name(target):
        if given is not None:
            raise OptionError(f"pyproject is for the name of an app, and {target} is a file")
        return program.deploy_file(target, values, on_change)
    found = project.read(project.find("" if given is None else str(given)))
    deployment = project_deploy.deploy(found.app(target), values, on_change)
    click.get_current_context().obj[target.replace("-", "_")] = deployment.handle
    return deployment


def _quoted(word: str) -> str:
    """Give a value with spaces the quotes back that the command line took from it."""
    key, _, text = word.partition("=")
    plain = any(char.isspace() for char in text) and text[0] not in "\"'[({"
    return f"{key}={text!r}" if plain else word


if __name__ == "__main__":
    main()
