"""The one command line, `bandana-kv`: its sub-commands are those of the modules beside this one.

Each is imported when it is asked for: what all of them need takes seconds, and neither the help nor
the completion of names should.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class

from bandana_kv.version import __version__

__all__ = ["cli", "main"]

_NAME = "bandana-kv"
_COMPLETE_VARIABLE = "_BANDANA_KV_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")
# Those that are about tables and their logs, which a file may name once for all of them.
_CONFIGURED = ("assess", "plan", "load", "watch", "profile")


class _Home(NamedTuple):
    """Where a sub-command is defined, and what the list of them says of it."""

    module: str
    said: str
    name: str = "main"


_HOMES = {
    "profile": _Home("profile_device", "Measure a device, and say how to read from it."),
    "assess": _Home("assess", "Say whether to move tables to NVM, what it gains and costs."),
    "plan": _Home("plan_cache", "Share DRAM among tables; choose placements and policies."),
    "place": _Home("place", "Learn from a log which rows of a table share a block."),
    "load": _Home("load_tables", "Load tables into a store, as a new version."),
    "migrate": _Home("migrate", "Move a table out of RocksDB or LMDB with a row per key."),
    "export": _Home("export_table", "Write a table back to a file: .npy, .safetensors, .parquet."),
    "inspect": _Home("inspect_store", "Show what a store holds, its space and its wear."),
    "verify": _Home("verify_store", "Check every block of a store, and repair bad ones."),
    "versions": _Home("versions", "List the versions of a store, or go back to one.", "versions"),
    "update": _Home("update_rows", "Replace rows of a table, durably."),
    "watch": _Home("watch_drift", "Say whether a new plan or placement would pay."),
    "place-anew": _Home("place_anew", "Move rows to where a placement has them."),
    "demo": _Home("demo", "Show what is gained on a log, or on one that is made up."),
}


class _Stopped(click.ClickException):
    """Ctrl-C came, or SIGTERM."""

    exit_code = 130


class _SubCommands(click.Group):
    """A group whose commands are imported when they are run, or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which they are used."""
        return [*_HOMES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a sub-command, and give it the options that all have."""
        home = _HOMES.get(cmd_name)
        if home is None:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"bandana_kv.tools.{home.module}")
        command: click.Command = copy.copy(getattr(module, home.name))
        added = [_quiet_option()]
        if cmd_name in _CONFIGURED:
            from bandana_kv.tools.configuration import config_option

            added.append(config_option())
        command.params = [*command.params, *added]
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a sub-command; Ctrl-C is an error of one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped("stopped") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(self._said(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names without importing what they name."""
        found = [(name, said) for name, said in self._said(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=said) for name, said in found]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def _said(self, ctx: click.Context) -> list[tuple[str, str]]:
        own = [
            (name, command.get_short_help_str())
            for name in super().list_commands(ctx)
            if (command := self.commands.get(name)) is not None
        ]
        return [*((name, home.said) for name, home in _HOMES.items()), *own]


def _quiet_option() -> click.Option:
    """Return the option that leaves nothing on the terminal but errors, and JSON asked for."""

    def be_quiet(context: click.Context, _parameter: click.Parameter, quiet: bool) -> None:
        from bandana_kv.tools.console import out

        before, out.quiet = out.quiet, quiet
        context.call_on_close(lambda: setattr(out, "quiet", before))

    return click.Option(
        ["--quiet"],
        is_flag=True,
        expose_value=False,
        callback=be_quiet,
        help="Say nothing but errors, and what --json asks for.",
    )


@click.group(
    _NAME,
    cls=_SubCommands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name=_NAME)
@click.pass_context
def cli(context: click.Context) -> None:
    """Embedding tables served from NVM or SSD at a fraction of the DRAM.

    The status is 0 if all went well, 1 if what was asked for failed or was found unsound, and 2 if
    the command line or its configuration file is not understood.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@cli.command(short_help="Print a script that completes names and options.")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print a script that completes names and options.

    For bash: put `eval "$(bandana-kv completion bash)"` into ~/.bashrc.
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"nothing is completed in {shell}")
    click.echo(found(cli, {}, _NAME, _COMPLETE_VARIABLE).source())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: an error is one line on standard error.

    Parameters
    ----------
    arguments
        By default those of the process.
    """
    sys.exit(_status(None if arguments is None else list(arguments)))


def _status(arguments: list[str] | None) -> int:
    options: dict[str, Any] = {"prog_name": _NAME, "complete_var": _COMPLETE_VARIABLE}
    try:
        ended = cli.main(arguments, standalone_mode=False, **options)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx is not None else _NAME
        said = error.format_message().rstrip(".")
        return _failed(f"{said}. Try '{asked} --help'.", error.exit_code)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    return ended if isinstance(ended, int) else 0


def _failed(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status


if __name__ == "__main__":
    main()
