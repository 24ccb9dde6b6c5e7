"""Work that is shared over processes: a failure stays alone, and all processes end together."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from config import Shard, parse_shard
from film.sharing import share_out
from utils import UserError, run_cli

PARENT_WAITS = 60  # seconds, for what takes moments


def work(item):
    name, task = item
    print(f"{name} by {torch.get_num_threads()} threads")
    if task == "fail":
        raise UserError(f"{name} is bad")
    if task == "die":
        os._exit(9)
    if task == "disk":
        raise OSError(28, "No space left on device")
    return task


def prepare():
    return work


def started(folder, item):
    """Say who works, and work on."""
    (folder / item[0]).write_text(str(os.getpid()))
    time.sleep(10 * PARENT_WAITS)  # longer than anyone waits for it to end


def prepare_started(folder):
    return partial(started, folder)


def test_a_failure_stays_alone(capfd, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    items = [("a", 1), ("b", "fail"), ("c", "die"), ("d", "die"), ("e", 2), ("f", 3)]
    answers = dict(share_out(prepare, items, 2))
    assert sorted(answers) == list(range(6)) and [answers[i] for i in (0, 4, 5)] == [1, 2, 3]
    assert isinstance(answers[1], UserError) and str(answers[1]) == "b is bad"
    for index, name in ((2, "c"), (3, "d")):
        assert f"worked on {name} ended with exit code 9" in str(answers[index])
    assert sorted(capfd.readouterr().out.splitlines()) == [f"{name} by 2 threads" for name in "abef"]
    alone = dict(share_out(prepare, items[1:5], 1))
    assert str(alone[0]) == "b is bad" and "worked on d ended with" in str(alone[2]) and alone[3] == 2
    assert str(dict(share_out(prepare, items[1:2], 1))[0]) == "b is bad"
    assert "ended with exit code 9" in str(dict(share_out(prepare, items[2:3], 1, apart=True))[0])


def test_a_full_disk_ends_all():
    with pytest.raises(OSError, match="No space left"):
        list(share_out(prepare, [("a", "disk"), ("b", 1)], 2))


def alive(process):
    """True while a process is at work; a zombie, which waits for its parent alone, is not."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + PARENT_WAITS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of processes in /proc")
def test_all_processes_end_together(tmp_path):
    """Ctrl-C in a terminal goes to all processes, kill -9 to one."""
    ways = {"Ctrl-C": (os.killpg, signal.SIGINT), "kill -9": (os.kill, signal.SIGKILL)}
    runs, environment = {}, {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for way in ways:
        (tmp_path / way).mkdir()
        runs[way] = subprocess.Popen([sys.executable, __file__, tmp_path / way], stderr=subprocess.PIPE, text=True,
                                     start_new_session=True, env=environment)
    for way, process in runs.items():
        folder = tmp_path / way
        wait_until(lambda folder=folder: all((folder / name).exists() and (folder / name).read_text() for name in "ab"))
        send, number = ways[way]
        send(process.pid, number)
    for way, process in runs.items():
        said = process.communicate(timeout=PARENT_WAITS)[1]
        workers = [int((tmp_path / way / name).read_text()) for name in "ab"]
        wait_until(lambda workers=workers: not any(map(alive, workers)))
        if way == "kill -9":
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130 and said == "interrupted\n"
        assert not (tmp_path / way / "c").exists()


def test_shards_are_all_and_each_once():
    items = list(range(11))
    for count in (1, 2, 3, 11, 20):
        parts = [Shard(number, count).of(items) for number in range(1, count + 1)]
        assert sorted(sum(parts, [])) == items and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parse_shard("2/5") == Shard(2, 5)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
    run_cli(lambda argv: list(share_out(partial(prepare_started, Path(argv[0])), [("a",), ("b",), ("c",)], 2)))
