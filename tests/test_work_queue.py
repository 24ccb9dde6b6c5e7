"""Sharing films between processes: same output as one process, and a process that dies loses only its last shots.

Run as a script under torchrun, this file is one of the processes that the tests start.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import isolated
import numpy as np
import pytest
import torch.distributed as dist
from drawn import StubPredictor, draw_dataset, draw_film, draw_picture, draw_shots
from isolated import TIMEOUT
from test_train import MODES, flags

import dataset_generator as generator
import test as coloring
import train
from colorizer.adaptation.film_response import FilmResponse
from config import FilmConfig
from fileio.images import write_image
from film.io.video import VideoFile
from film.render import rendering, worker_group
from film.render.rendering import RenderJob, color_film
from film.render.work_queue import WorkQueue
from film.render.worker_group import WorkerGroup, run_isolated
from utils import UserError, run_cli

SHOTS = [(60, 7), (200, 5), (110, 9), (220, 6), (30, 5), (160, 8)]


# ---------------------------------------------------------------------------------------------------------------------
# Order of the shots


def hand_out(lengths, size, turns, first=()):
    """Return the shots of these lengths that ``size`` processes get when they ask in the order ``turns``: {process:
    [indices]}."""
    store = dist.HashStore()
    group = [WorkerGroup(store, rank, size) for rank in range(size)]
    owner = WorkQueue(group[0], "film", first=first)
    owner.publish(lengths)
    queues = [iter(owner), *(iter(WorkQueue(other, "film", owner.name)) for other in group[1:])]
    taken = {rank: [] for rank in range(size)}
    for turn in turns:
        if (number := next(queues[turn], None)) is not None:
            taken[turn].append(number)
    return taken


@pytest.mark.parametrize("lengths, size, turns, expected", [
    ([9, 30, 9, 40, 9], 1, "000000", {0: [0, 1, 2, 3, 4]}),
    ([9] * 12, 2, "01" * 7, {0: [0, 1, 2, 3, 4, 5], 1: [6, 7, 8, 9, 10, 11]}),
    ([9] * 12, 2, "01111111111", {0: [0], 1: [6, 7, 8, 9, 10, 11, 3, 4, 5, 1]}),  # a slow process delays nothing
    ([9] * 12, 3, "012" * 4, {0: [0, 1, 2, 9], 1: [6, 7, 8, 10], 2: [3, 4, 5, 11]}),
    ([9] * 8 + [99], 2, "01010", {0: [8, 2, 3], 1: [4, 5]}),  # would finish long after all others
])
def test_each_shot_is_handed_out_once_in_runs_and_the_longest_first(lengths, size, turns, expected):
    assert hand_out(dict(enumerate(lengths)), size, map(int, turns)) == expected


def test_some_shots_can_be_colored_first(tmp_path):
    assert hand_out(dict(enumerate([9] * 6)), 1, [0] * 7, first=[4, 2]) == {0: [4, 2, 3, 5, 0, 1]}
    assert hand_out({3: 9, 7: 9, 8: 9}, 1, [0] * 4) == {0: [3, 7, 8]}
    source, order = draw_shots(tmp_path / "in.mkv", SHOTS), []

    class RecordingQueue(WorkQueue):
        def mark_done(self, index):
            order.append(index)
            super().mark_done(index)

    work = RenderJob(StubPredictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig())
    records = work.run_as_owner(RecordingQueue(first=[4, 1]))
    assert order == [4, 1, 2, 3, 5, 0]
    expected = color_film(StubPredictor(), VideoFile(source), tmp_path / "plain.mkv")
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "plain.mkv").read_bytes()
    assert without_seconds(tmp_path / "out_shots.jsonl") == without_seconds(tmp_path / "plain_shots.jsonl")
    assert [record.log_line() | {"seconds": 0} for record in records] == [
        record.log_line() | {"seconds": 0} for record in expected]


# ---------------------------------------------------------------------------------------------------------------------
# Owners and helpers


class Killed(BaseException):
    pass


def die(group):
    """End a process before it can update the store."""
    group._leave = lambda state: None
    raise Killed


def test_a_file_that_kills_its_process_is_tried_twice_and_after_the_other_files(capsys):
    store, done = dist.HashStore(), []

    def work():
        group = WorkerGroup(store, 0, 1)

        def own(key):
            done.append(key)
            if key == "b":
                die(group)
            if key == "c":
                raise UserError("c is bad")

        return group.run_all(["a", "b", "c", "d"], own)

    for _ in range(2):
        with pytest.raises(Killed):
            work()
    errors = work()
    assert done == ["a", "b", "c", "d", "b"] and list(errors) == ["b", "c"]
    assert re.match("the process that worked on b ended 2 times", str(errors["b"])) and str(errors["c"]) == "c is bad"
    printed = capsys.readouterr().err
    assert printed.count("c is bad; continuing with the other files") == 1 and printed.count("b ended 2 times") == 1


def test_several_deaths_in_one_attempt_count_once(monkeypatch):
    """For example when a machine fails."""
    monkeypatch.setattr(worker_group, "EXIT_TIMEOUT", 0)  # no other process arrives at the barrier
    store = dist.HashStore()
    one, two = (WorkerGroup(store, rank, 2) for rank in range(2))
    queue = WorkQueue(one, "film")

    def own(key):
        queue.publish({0: 5, 1: 5})
        assert two._join_queue([key])
        die(one)

    with pytest.raises(Killed):
        one.run_all(["film"], own)
    again, _ = (WorkerGroup(store, rank, 2) for rank in range(2))
    assert again.run_all(["film"], lambda key: None) == {}


def test_an_interrupted_process_is_not_a_failed_attempt():
    store = dist.HashStore()

    def stop(key):
        raise KeyboardInterrupt

    for _ in range(worker_group.MAX_FAILED_ATTEMPTS + 1):
        with pytest.raises(KeyboardInterrupt):
            WorkerGroup(store, 0, 1).run_all(["a"], stop)
    assert WorkerGroup(store, 0, 1).run_all(["a"], lambda key: None) == {}


def test_a_film_gets_a_new_owner_only_after_its_last_helper_has_left():
    """The helpers of an owner that died finish the shots on offer first."""
    store = dist.HashStore()
    one, two = (WorkerGroup(store, rank, 2) for rank in range(2))
    one.update("film", one._become_owner)
    queue = WorkQueue(one, "film")
    queue.publish(dict.fromkeys(range(4), 5))
    assert two._join_queue(["film"]) == ("film", queue.name)
    one = WorkerGroup(store, 0, 2)  # restarted
    assert one._claim(["film"], False) is None
    assert list(WorkQueue(two, "film", queue.name)) == [0, 1, 2, 3]
    two.update("film", two._leave)
    assert one._claim(["film"], False) == "film"


def test_idle_processes_help_with_one_film(tmp_path):
    """The error of a helper is the error of the film."""
    size = 3
    source, store = draw_shots(tmp_path / "in.mkv", SHOTS), dist.HashStore()
    expected = color_film(StubPredictor(), VideoFile(source), tmp_path / "one.mkv")
    helped, records = threading.Event(), {}

    def process(rank, name, predictor, errors):
        group = WorkerGroup(store, rank, size)
        work = RenderJob(predictor, VideoFile(source), tmp_path / name, FilmConfig())

        def own(key):
            records[key] = work.run_as_owner(WorkQueue(group, key))

        def help(key, queue):
            helped.set()
            work.run_as_helper(WorkQueue(group, key, queue))

        errors[rank] = group.run_all([name], own, help)

    def run(name, predictors):
        errors = {}
        threads = [threading.Thread(target=process, args=(rank, name, predictor, errors))
                   for rank, predictor in enumerate(predictors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        return [{key: str(error) for key, error in errors[rank].items()} for rank in range(size)]

    def broken():
        raise UserError("a predictor is broken")

    class Helped(StubPredictor):
        def predict(self, *args):
            assert helped.wait(TIMEOUT)
            return super().predict(*args)

    assert run("all.mkv", [Helped() for _ in range(size)]) == [{}] * size
    assert (tmp_path / "all.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()
    assert without_seconds(tmp_path / "all_shots.jsonl") == without_seconds(tmp_path / "one_shots.jsonl")
    assert [r.log_line() | {"seconds": 0} for r in records["all.mkv"]] == [
        r.log_line() | {"seconds": 0} for r in expected]
    helped.clear()
    failed = run("bad.mkv", [Helped(0, broken) for _ in range(size)])
    assert failed == [{"bad.mkv": "a predictor is broken"}] * size and not (tmp_path / "bad.mkv").exists()


class Responding(StubPredictor):
    """A predictor that returns the given film response, or dies in ``fit_response``."""

    def __init__(self, response=None):
        super().__init__()
        self.response = response

    def fit_response(self, lightness):
        if self.response is Killed:
            raise Killed
        return self.response

    def with_response(self, response):
        return self if response is None else Brighter()


class Awaited(Responding):
    """A predictor that blocks the analysis at the last shot until a shot is being colored."""

    def __init__(self, response=None):
        super().__init__(response)
        self.painting = threading.Event()

    def palette(self, labs):
        assert self.shots < len(SHOTS) - 1 or self.painting.wait(TIMEOUT)
        return super().palette(labs)

    def predict(self, L, palette):
        self.painting.set()
        return super().predict(L, palette)


class Brighter(StubPredictor):
    def palette(self, labs):
        return super().palette([lab + np.float32(9) for lab in labs])


def color_with_helper(predictor, source, output):
    """Color a film with an owner and a helper."""
    store = dist.HashStore()

    def process(rank):
        group, work = WorkerGroup(store, rank, 2), RenderJob(predictor, VideoFile(source), output, FilmConfig())
        with suppress(Killed):
            group.run_all(["film"], lambda key: work.run_as_owner(WorkQueue(group, key)),
                       lambda key, queue: work.run_as_helper(WorkQueue(group, key, queue)))

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)


@pytest.mark.parametrize("response", [None, FilmResponse(np.array([0.0, 100.0]), np.array([9.0, 109.0]))])
def test_helpers_color_shots_during_the_analysis(tmp_path, response):
    """Shots are colored again if the film turns out to have a film response."""
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    color_film(Responding(response), VideoFile(source), tmp_path / "one.mkv")
    color_with_helper(Awaited(response), source, tmp_path / "two.mkv")
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()
    assert without_seconds(tmp_path / "two_shots.jsonl") == without_seconds(tmp_path / "one_shots.jsonl")


def test_shots_colored_during_the_analysis_survive_the_death_of_the_owner(tmp_path):
    source, killed = draw_shots(tmp_path / "in.mkv", SHOTS), Awaited(Killed)
    after, alone = StubPredictor(), StubPredictor()
    color_with_helper(killed, source, tmp_path / "two.mkv")
    color_film(after, VideoFile(source), tmp_path / "two.mkv")
    color_film(alone, VideoFile(source), tmp_path / "one.mkv")
    assert killed.frames and killed.frames + after.frames == alone.frames
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()


def test_the_leader_computes_a_value_once_for_all_processes(monkeypatch):
    monkeypatch.setattr(worker_group, "EXIT_TIMEOUT", 0)  # no other process arrives at the barrier
    store = dist.HashStore()
    leader, other = (WorkerGroup(store, rank, 2) for rank in range(2))
    assert leader.compute_on_leader("a", lambda: {"x": [1]}) == other.compute_on_leader("a", None) == {"x": [1]}

    def refuse():
        raise UserError("refused")

    for group in (leader, WorkerGroup(store, 0, 2)):  # a restarted leader, too
        with pytest.raises(UserError, match="refused"):
            group.compute_on_leader("b", refuse)
    with pytest.raises(SystemExit):
        other.compute_on_leader("b", refuse)


def test_a_single_process_keeps_a_computed_value_out_of_the_store():
    value = object()
    assert WorkerGroup().compute_on_leader("a", lambda: value) is value


# ---------------------------------------------------------------------------------------------------------------------
# Subprocess isolation


def test_a_file_that_kills_the_subprocess_does_not_stop_the_others(capfd):
    errors = run_isolated(["a", "b", "c"], isolated.share_with_a_process_that_dies, "b")
    assert list(errors) == ["b"] and "the process that worked on b ended 2 times" in str(errors["b"])
    assert capfd.readouterr().err.count("while working on b, its process ended with exit code 9") == 2
    with pytest.raises(UserError, match="cannot be started: its process ended with exit code 7"):
        run_isolated(["a"], isolated.end)
    with pytest.raises(UserError, match="there is no checkpoint"):
        run_isolated(["a"], isolated.refuse)
    with pytest.raises(UserError, match="by the signal 'Killed' .if the memory is full, lower --batch_size"):
        run_isolated(["a"], isolated.kill)


def test_an_error_in_the_subprocess_is_reported_as_what_it_is(capfd):
    """No file is tried again, and an error is not taken for a lack of memory."""
    errors = run_isolated(["a", "b", "c"], isolated.share_with_errors)
    assert list(errors) == ["a", "b"] and "--batch_size" in str(errors["a"]) and "--img_size" in str(errors["a"])
    assert str(errors["b"]) == "internal error: UnpicklableError: spam; report it with the traceback"
    assert (printed := capfd.readouterr().err).count("UnpicklableError: spam\n") == 1 == printed.count("Traceback")
    with pytest.raises(RuntimeError, match="(?s)Traceback.*UnpicklableError: spam"):
        run_isolated(["a"], isolated.fail)


def alive(process):
    """Return whether a process runs; a zombie, which only waits for its parent, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=TIMEOUT / 2):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of processes in /proc")
def test_the_subprocess_ends_with_its_parent(tmp_path):
    """Ctrl-C in a terminal reaches all processes, kill -9 only one."""
    ways = {"Ctrl-C": (os.killpg, signal.SIGINT), "kill -9": (os.kill, signal.SIGKILL)}
    runs = {}
    for way in ways:
        (tmp_path / way).mkdir()
        with open(tmp_path / f"{way}.txt", "w") as printed:
            runs[way] = start([sys.executable, isolated.__file__, tmp_path / way], printed)
    try:
        for way, process in runs.items():
            wait_until((tmp_path / way / "a").exists)
            send, number = ways[way]
            send(process.pid, number)
        for way, process in runs.items():
            code = process.wait(TIMEOUT / 2)
            worker = int((tmp_path / way / "a").read_text())
            wait_until(lambda worker=worker: not alive(worker))
            if way == "kill -9":
                assert code == -signal.SIGKILL
            else:
                assert code == 130 and (tmp_path / f"{way}.txt").read_text() == "interrupted\n"
            assert not (tmp_path / way / "b").exists()
    finally:
        for process in runs.values():
            process.kill()


# ---------------------------------------------------------------------------------------------------------------------
# torchrun


def start(command, printed):
    """Start a command in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), stdout=printed, stderr=printed, env=environment,
                            start_new_session=True)


def without_seconds(path):
    return re.sub(rb'("seconds": )[0-9.]+', rb"\1", path.read_bytes())


def outputs(folder):
    """Return the contents of all films, pictures and dataset files in a folder, without running times."""
    return {str(path.relative_to(folder)): without_seconds(path) for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".pt", ".txt")}


def run_both(home, folder):
    """Generate the dataset of the readable films in ``home`` and color all films."""
    generator.main(["--video_path", str(home / "in"), "--video_names", "a", "b", "--shots_len_thres", "5",
                    "--split", "0.5", "0.5", "0", "--save_path", str(folder / "dataset")])
    coloring.main(flags(checkpoint=home / "memory" / "best.pt", input=home / "in", output=folder / "out", batch_size=4,
                        device="cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a small checkpoint, films (one unreadable), a picture, and the output of a single process."""
    home = draw_dataset(tmp_path_factory.mktemp("crew"))
    train.main(flags(data_path=home, save_path=home / "memory", width=4, batch_size=6, end_epoch=1, **MODES["memory"]))
    (home / "in").mkdir()
    draw_shots(home / "in" / "a.mkv", SHOTS)
    draw_film(home / "in" / "b.mkv", times=range(6))
    (home / "in" / "bad.mp4").write_text("not a film")
    write_image(home / "in" / "d.png", draw_picture(0))
    with pytest.raises(UserError, match="1 of 3 films failed"):
        run_both(home, home / "one")
    return home


def torchrun(home, folder, way, *nodes):
    """Run ``run_both`` under torchrun, once for each list of its arguments; return (exit codes, printed text)."""
    folder.mkdir()
    with open(folder / "output.txt", "w+") as printed:
        runs = [start([sys.executable, "-m", "torch.distributed.run", *node, __file__, way, home, folder], printed)
                for node in nodes]
        try:
            codes = [run.wait(TIMEOUT) for run in runs]
        finally:
            for run in runs:
                run.terminate()
        return codes, (folder / "output.txt").read_text()


def starts(folder):
    """Return (film, shot) for each time that coloring of a shot was started."""
    return [tuple(line.split()[:2]) for line in (folder / "starts.txt").read_text().splitlines()]


@pytest.mark.slow
def test_two_machines_with_two_processes_each_give_the_output_of_one_process(home, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = ["--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
            "--rdzv_id=test"]
    codes, printed = torchrun(home, tmp_path / "four", "watch", node, node)
    assert codes == [1, 1], printed
    assert outputs(tmp_path / "four") == outputs(home / "one")
    assert sorted(starts(tmp_path / "four")) == sorted(set(starts(tmp_path / "four")))
    assert printed.count("error: 1 of 3 films failed") == 1 and printed.count("bad.mp4 as a video") == 1
    assert len(re.findall("^colored ", printed, re.M)) == 3 and printed.count("written to ") == 1


def test_a_killed_process_is_restarted_and_nothing_is_lost(home, tmp_path):
    codes, printed = torchrun(home, tmp_path / "two", "kill",
                              ["--standalone", "--nproc_per_node=2", "--max-restarts=1"])
    assert codes == [1] and (tmp_path / "two" / "killed.txt").exists(), printed
    assert outputs(tmp_path / "two") == outputs(home / "one")
    started = starts(tmp_path / "two")
    assert set(started) == {("a.mkv", str(number)) for number in range(6)} | {("b.mkv", "0")}
    assert len(started) <= len(set(started)) + 2  # the shots that were in progress


def main(way, home, folder):
    home, folder = Path(home), Path(folder)
    color_shot = rendering.FilmRendering._color_shot

    def watched(work, number, *rest):
        with open(folder / "starts.txt", "a") as file:
            print(work.output.name, number, file=file)
        color_shot(work, number, *rest)
        if way == "kill" and number == 3 and not (folder / "killed.txt").exists():
            (folder / "killed.txt").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    rendering.FilmRendering._color_shot = watched
    run_both(home, folder)


if __name__ == "__main__":
    run_cli(lambda argv: main(*argv))
