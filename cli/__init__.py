"""The command line: parse, call, print. No logic, and nothing heavy imported before a command needs it."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import IO, Any

import click

import moemodel
from moemodel.model.core.ending import ending_cleanly
from moemodel.model.core.errors import MoeModelError

# Where each command lives: a module is imported when its command runs, or its help is shown.
_COMMANDS: dict[str, str] = {
    "predict": "moemodel.cli.predict:predict_command",
    "optimize": "moemodel.cli.optimize:optimize_command",
    "init": "moemodel.cli.init:init_command",
    "models": "moemodel.cli.models:models_command",
    "gpus": "moemodel.cli.gpus:gpus_command",
    "profile": "moemodel.cli.profile:profile_command",
    "calibrate": "moemodel.cli.calibrate:calibrate_command",
    "validate": "moemodel.cli.validate:validate_command",
}

# What the others don't need, by the extra that installs it.
_EXTRAS: dict[str, str] = {"profile": "profile", "calibrate": "calibrate", "validate": "profile"}


class _Failure(click.ClickException):
    """What the user can mend, on stderr; exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"moemodel: {self.message}", err=file is None, file=file)


class _Commands(click.Group):
    """A group that imports a command when it is asked for, and turns the library's errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command = getattr(import_module(module), name)
        return command if isinstance(command, click.Command) else None

    def main(self, *args: Any, **options: Any) -> Any:
        """As click does; a signal that ends the command is its exit status, as a shell reports it."""
        with ending_cleanly() as ending:
            try:
                return super().main(*args, **options)
            except SystemExit:
                ending.last = True
                if ending.exit_status is not None:
                    raise SystemExit(ending.exit_status) from None
                raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MoeModelError as error:
            raise _Failure(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone; click ends quietly
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise _Failure(f"{place}{error.strerror or error}") from None
        except ModuleNotFoundError as error:
            command = ctx.invoked_subcommand or ""
            if command not in _EXTRAS or not error.name or error.name.startswith("moemodel"):
                raise
            raise _Failure(
                f"{command} needs {error.name}, which is not installed; "
                f"install it with: pip install 'moemodel[{_EXTRAS[command]}]'"
            ) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(moemodel.__version__, prog_name="moemodel")
def main() -> None:
    """Time, power, energy, memory, carbon and cost of training a language model, before it is trained."""
