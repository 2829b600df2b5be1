"""The `platform` command: finds the subcommand, runs it, and turns its errors into messages and exit codes.

Exit codes: 0 done; 2 the user's input is wrong (a few lines, no traceback unless --debug); 75 a fit was stopped by a
signal, has saved and can continue; 1 anything else.
Nothing here imports torch, so help and lists appear at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from inflate3d import __version__
from inflate3d.cli.examples import example_of
from inflate3d.errors import InputError, close_names
from inflate3d.remote.outcomes import Unreachable

# One file per subcommand, in the order of a first day; each has add_parser(subparsers).
SUBCOMMANDS = (
    "finetune",
    "fit",
    "doctor",
    "submit",
    "status",
    "report",
    "predict",
    "shards",
    "datasets",
    "tasks",
    "models",
    "configs",
    "import-plans",
    "transfer",
    "publish",
    "soup",
    "export",
    "plot",
)
MOST_LINES = 8

# Not part of the light core: if an import of one of these fails, the extra is not installed.
_TRAIN_MODULES = {
    *("lightning", "lightning_utilities", "jsonargparse", "webdataset", "torchio", "torchmetrics", "av", "nibabel"),
    *("SimpleITK", "scipy", "xxhash", "yaml", "rich", "matplotlib", "jinja2", "wandb", "blosc2", "fsspec", "orjson"),
}
_EXTRAS = {**dict.fromkeys(_TRAIN_MODULES, "train"), "s3fs": "s3"}

_EPILOG = """\
the first hour:
  platform finetune FOLDER                      your own cases: look, plan, train, score, publish
  platform fit --config quickstart.yaml         toy shards, three tasks, published weights, in under three minutes
  platform datasets list                        readable datasets; `show NAME` prints layout and licence
  platform shards build NAME --root RAW --output DIR
  platform fit --config FILE.yaml               train; the same command again continues

--debug anywhere shows the traceback of an error. `inflate3d` is the same command as `platform`.
"""


class _Parser(argparse.ArgumentParser):
    """One whose help begins with an example, and whose errors are a few lines, without the usage of every option."""

    def format_help(self) -> str:
        return f"example: {example_of(self.prog)}\n\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}. Help: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Threads that spin while waiting starve each other on shared cores: ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _run([a for a in arguments if a != "--debug"])
    except InputError as error:
        if debug:
            raise
        _print_error(_shorten(str(error)))
        return 2
    except Unreachable as error:
        if debug:
            raise
        _print_error(_shorten(str(error)))
        return 1
    except BrokenPipeError:  # `platform ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of a file that the user named, or of a disk: it says which
        if debug or error.filename is None:
            raise
        _print_error(
            f"{error.filename}: {error.strerror}. Check that path, its rights and the disk; --debug shows more"
        )
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if debug or extra is None:
            raise
        _print_error(
            f"this needs {error.name!r}, which is not part of the light core: pip install 'inflate3d[{extra}]'"
        )
        return 2
    except KeyboardInterrupt:
        _print_error("interrupted; run the same command again to continue from the last checkpoint or finished shard")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = _Parser(
        prog="platform",
        description="2D weights in, 3D foundation weights out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inflate3d {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=_Parser)
    for name in SUBCOMMANDS:
        importlib.import_module(f"inflate3d.cli.{name.replace('-', '_')}").add_parser(subparsers)
    return parser


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    _check_command(parser, arguments[0])
    # Options that the parser does not know are config overrides (--trainer.max_steps 10) for commands that take them.
    args, unknown = parser.parse_known_args(arguments)
    if unknown and not getattr(args, "takes_overrides", False):
        raise _unknown_options(parser, arguments, unknown)
    args.overrides = unknown
    return int(args.run(args) or 0)


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _check_command(parser: argparse.ArgumentParser, word: str) -> None:
    known = _choices(parser)
    if word.startswith("-") or word in known:
        return
    close = close_names(word, known)
    hint = f"close names: {', '.join(close)}" if close else f"commands: {', '.join(known)}"
    raise InputError(f"platform: unknown command {word!r}; {hint}. Help: platform --help")


def _unknown_options(parser: argparse.ArgumentParser, arguments: list[str], unknown: list[str]) -> InputError:
    prog, deepest = parser.prog, parser
    for word in arguments:
        if word not in _choices(deepest):
            break
        deepest = _choices(deepest)[word]
        prog = deepest.prog
    known = [option for action in deepest._actions for option in action.option_strings]
    close = close_names(unknown[0].partition("=")[0], known)
    hint = f"close names: {', '.join(close)}. " if close else ""
    return InputError(f"{prog}: unknown argument {unknown[0]!r}; {hint}Help: {prog} --help")


def _shorten(message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip()]
    if len(lines) <= MOST_LINES:
        return "\n".join(lines)
    return "\n".join([*lines[: MOST_LINES - 1], f"... {len(lines) - MOST_LINES + 1} more lines; --debug shows all"])


def _print_error(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
