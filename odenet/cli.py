"""The command `odenet`: compare, train, evaluate, diagnose, list.

All but the last are Hydra applications on the packaged configs, with all of Hydra's flags. Errors are one
sentence and exit status 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odenet.experiments.commands import Command

USAGE = """\
odenet: residual networks as numerical integrators

  odenet compare [key=value ...]          walk one residual function in different ways and compare
  odenet train [key=value ...]            train one network: model=odenet solver=dopri5 data=digits
  odenet evaluate run=PATH solver=rk4 steps=20
                                          the trained weights of a run under another solver
  odenet audit run=PATH                   every gradient method on a trained network: error, memory, time
  odenet diagnose run=PATH                is the trained network of a run an ODE?
  odenet list                             solvers, gradients, residual functions, data sets, configs

  odenet COMMAND --help                   the groups and keys of a command
  odenet compare -m seed=0,1,2            several runs, and a summary over seeds
  odenet COMMAND --config-dir DIR         add configs of your own
"""
BAD_INPUT = 2
FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c", "--info", "-i", "--experimental-rerun"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process).

    Returns:
        0 if all went well, 2 for bad input or a run that broke down, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        from odenet import __version__

        print(f"odenet {__version__}")
        return 0
    command, rest = words[0], words[1:]
    try:
        return _dispatch(command, rest)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BaseException as error:
        sentence = _sentence(error, rest)
        if sentence is None:
            raise
        print(f"odenet {command}: {sentence}", file=sys.stderr)
        return BAD_INPUT


def _dispatch(command: str, rest: list[str]) -> int:
    from odenet.errors import UnknownNameError
    from odenet.experiments.commands import COMMANDS

    if command == "list":
        from odenet.experiments.listing import list_everything
        from odenet.experiments.terminal import console

        list_everything(console())
        return 0
    if command not in COMMANDS:
        raise UnknownNameError("command", command, (*COMMANDS, "list"))
    _hydra(command, COMMANDS[command], rest)
    return 0


def _hydra(name: str, command: Command, rest: list[str]) -> None:
    """Run a command as a Hydra application whose primary config directory is the packaged one.

    An error of ours in a job of this process is kept until Hydra is done, so that the other jobs of a multirun go on.
    """
    import hydra
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from odenet.errors import OdenetError

    failures: list[Exception] = []
    here = os.getpid()

    def task(config: DictConfig) -> None:
        try:
            command.run(config)
        except (OdenetError, OmegaConfBaseException) as error:
            if os.getpid() != here:
                raise
            failures.append(error)

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, and come out as a sentence
    previous = sys.argv
    sys.argv = [f"odenet {name}", *flags_first(rest)]
    application: Callable[[], Any] = hydra.main(
        version_base="1.3", config_path=str(command.folder()), config_name=name
    )(task)
    try:
        application()
    finally:
        sys.argv = previous
    for error in failures[:-1]:
        print(f"odenet {name}: {error}", file=sys.stderr)
    if failures:
        raise failures[-1]


def flags_first(words: list[str]) -> list[str]:
    """The words of a command line with Hydra's flags before the overrides: argparse takes them in that order only."""
    flags, overrides = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in FLAGS_WITH_VALUE and words:
            flags.append(words.pop(0))
    return flags + overrides


def _sentence(error: BaseException, rest: list[str]) -> str | None:
    """What to say of an error: a sentence for bad input, None for a defect of ours, which shows its traceback."""
    from odenet.errors import OdenetError

    if isinstance(error, OdenetError):
        return str(error)
    if isinstance(error, SystemExit):
        return None
    from odenet.experiments.mistakes import explain

    return explain(error)


if __name__ == "__main__":
    sys.exit(main())
