"""Functions that tests run in a subprocess. The module imports little, since each subprocess imports it.

Run as a script, it works in a subprocess until it is killed.
"""

import os
import signal
import time
from pathlib import Path

from film.render.worker_group import run_isolated
from utils import UserError, run_cli

TIMEOUT = 120  # seconds, for slow operations


def share_with_a_process_that_dies(group, deadly):
    def own(key):
        if key == deadly:
            os._exit(9)

    return group.run_all(["a", "b", "c"], own)


def share_with_errors(group):
    def own(key):
        if key == "a":
            raise MemoryError
        if key == "b":
            raise UnpicklableError("spam", "eggs")

    return group.run_all(["a", "b", "c"], own)


class UnpicklableError(Exception):
    def __init__(self, message, details):
        super().__init__(message)


def fail(group):
    raise UnpicklableError("spam", "eggs")


def end(group):
    os._exit(7)


def kill(group):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(group):
    raise UserError("there is no checkpoint")


def work_long(group, folder):
    """Write the process id into a file named after the key, then sleep."""
    def own(key):
        (folder / f".{key}").write_text(str(os.getpid()))
        os.replace(folder / f".{key}", folder / key)
        time.sleep(TIMEOUT)  # longer than the test waits for the process to end

    group.run_all(["a", "b"], own)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT in background processes
    run_cli(lambda argv: run_isolated(["a", "b"], work_long, Path(argv[0])))
