"""The command line: parse, call, print. No logic, and nothing heavy imported before a command needs it."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from typing import IO, Any

import click

import moemodel
from moemodel.cli.output import echo
from moemodel.cli.visible import visible
from moemodel.model.core.ending import ending_cleanly
from moemodel.model.core.errors import MoeModelError

# Where each command lives: a module is imported when its command runs, or its help is shown.
_COMMANDS: dict[str, str] = {
    "predict": "moemodel.cli.predict:predict_command",
    "optimize": "moemodel.cli.optimize:optimize_command",
    "place": "moemodel.cli.place:place_command",
    "schedule": "moemodel.cli.schedule:schedule_command",
    "init": "moemodel.cli.init:init_command",
    "import": "moemodel.cli.import_plan:import_command",
    "models": "moemodel.cli.models:models_command",
    "gpus": "moemodel.cli.gpus:gpus_command",
    "profile": "moemodel.cli.profile:profile_command",
    "calibrate": "moemodel.cli.calibrate:calibrate_command",
    "compare": "moemodel.cli.compare:compare_command",
    "validate": "moemodel.cli.validate:validate_command",
    "run": "moemodel.cli.run:run_command",
    "strategies": "moemodel.cli.strategies:strategies_command",
    "study": "moemodel.cli.study:study_command",
}

_LONGEST = 4000  # characters of a message
_INTERRUPTED = 130  # as a shell reports Ctrl-C


class _Failure(click.ClickException):
    """What the user can mend, on stderr; exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        message = self.message if len(self.message) <= _LONGEST else f"{self.message[:_LONGEST]}..."
        click.echo(visible(f"moemodel: {message}"), err=file is None, file=file)


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

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        _print_all_characters()
        if any("\0" in arg for arg in args):
            raise _Failure("an argument holds a NUL; no file, option or name does")
        with _safe_messages():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _safe_messages():
                return super().invoke(ctx)
        except MoeModelError as error:
            raise _Failure(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone; click ends quietly
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise _Failure(f"{place}{error.strerror or error}") from None
        except MemoryError:
            raise _Failure("there is not enough memory for this") from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once, and quietly
            echo("moemodel: interrupted", err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None


@contextmanager
def _safe_messages() -> Iterator[None]:
    """click's own messages quote arguments and the names of files as they are."""
    try:
        yield
    except click.ClickException as error:
        error.message = visible(error.message)  # type: ignore[misc]
        raise


def _print_all_characters() -> None:
    """Characters that the output's encoding lacks are escaped, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):  # a pipe that says it can be sought, and can't
                stream.reconfigure(errors="backslashreplace")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(moemodel.__version__, prog_name="moemodel")
def main() -> None:
    """Time, power, energy, memory, carbon and cost of training a language model, before it is trained."""
