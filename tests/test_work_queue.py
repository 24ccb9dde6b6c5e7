"""Films that several processes share come out as by one; a process that dies costs nothing but its own last shots.

Run as a script by torchrun it is a process of those that the tests compare.
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

import numpy as np
import pytest
import torch.distributed as dist
from drawn import StubPredictor, draw_dataset, draw_film, draw_picture, draw_shots
from test_train import WAYS, flags

import dataset_generator as generator
import test as coloring
import train
from colorizer.adaptation.film_response import FilmResponse
from config import FilmConfig
from fileio.images import write_image
from film.io.video import VideoFile
from film.render import rendering as episode, work_queue as crews
from film.render.rendering import RenderJob, color_film
from film.render.work_queue import WorkQueue, WorkerGroup, run_isolated
from utils import UserError, run_cli

WAITS = 120  # seconds, for what takes some
SHOTS = [(60, 7), (200, 5), (110, 9), (220, 6), (30, 5), (160, 8)]


# ---------------------------------------------------------------------------------------------------------------------
# Which shot is next


def hand_out(lengths, size, turns, first=()):
    """What boards of ``size`` processes hand out, of shots of these lengths, when they ask in this order: {process:
    [numbers]}."""
    store = dist.HashStore()
    group = [WorkerGroup(store, rank, size) for rank in range(size)]
    host = WorkQueue(group[0], "film", first=first)
    host.post(lengths)
    boards = [iter(host), *(iter(WorkQueue(other, "film", host.name)) for other in group[1:])]
    taken = {rank: [] for rank in range(size)}
    for turn in turns:
        if (number := next(boards[turn], None)) is not None:
            taken[turn].append(number)
    return taken


@pytest.mark.parametrize("lengths, size, turns, expected", [
    ([9, 30, 9, 40, 9], 1, "000000", {0: [0, 1, 2, 3, 4]}),
    ([9] * 12, 2, "01" * 7, {0: [0, 1, 2, 3, 4, 5], 1: [6, 7, 8, 9, 10, 11]}),
    ([9] * 12, 2, "01111111111", {0: [0], 1: [6, 7, 8, 9, 10, 11, 3, 4, 5, 1]}),  # a slow one holds up nothing
    ([9] * 12, 3, "012" * 4, {0: [0, 1, 2, 9], 1: [6, 7, 8, 10], 2: [3, 4, 5, 11]}),
    ([9] * 8 + [99], 2, "01010", {0: [8, 2, 3], 1: [4, 5]}),  # would be done long after all others
])
def test_shots_are_handed_out_each_once_in_runs_and_the_longest_not_last(lengths, size, turns, expected):
    assert hand_out(dict(enumerate(lengths)), size, map(int, turns)) == expected


def test_some_shots_can_be_colored_first(tmp_path):
    assert hand_out(dict(enumerate([9] * 6)), 1, [0] * 7, first=[4, 2]) == {0: [4, 2, 3, 5, 0, 1]}
    assert hand_out({3: 9, 7: 9, 8: 9}, 1, [0] * 4) == {0: [3, 7, 8]}
    source, order = draw_shots(tmp_path / "in.mkv", SHOTS), []

    class Told(WorkQueue):
        def done(self, number):
            order.append(number)
            super().done(number)

    work = RenderJob(StubPredictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig())
    records = work.run_as_owner(Told(first=[4, 1]))
    assert order == [4, 1, 2, 3, 5, 0]
    expected = color_film(StubPredictor(), VideoFile(source), tmp_path / "plain.mkv")
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "plain.mkv").read_bytes()
    assert without_seconds(tmp_path / "out_shots.jsonl") == without_seconds(tmp_path / "plain_shots.jsonl")
    assert [record.log_line() | {"seconds": 0} for record in records] == [
        record.log_line() | {"seconds": 0} for record in expected]


# ---------------------------------------------------------------------------------------------------------------------
# Who works on what


class Killed(BaseException):
    pass


def die(group):
    """Let a process end without a word."""
    group._leave = lambda notes: None
    raise Killed


def test_a_file_that_kills_its_process_is_tried_twice_and_after_all_others(capsys):
    store, done = dist.HashStore(), []

    def work():
        group = WorkerGroup(store, 0, 1)

        def host(key):
            done.append(key)
            if key == "b":
                die(group)
            if key == "c":
                raise UserError("c is bad")

        return group.run_all(["a", "b", "c", "d"], host)

    for _ in range(2):
        with pytest.raises(Killed):
            work()
    errors = work()
    assert done == ["a", "b", "c", "d", "b"] and list(errors) == ["b", "c"]
    assert re.match("the process that worked on b ended 2 times", str(errors["b"])) and str(errors["c"]) == "c is bad"
    said = capsys.readouterr().err
    assert said.count("c is bad; the others go on") == 1 and said.count("b ended 2 times") == 1


def test_many_deaths_at_a_time_count_as_one(monkeypatch):
    """As when a machine fails."""
    monkeypatch.setattr(crews, "EXIT_TIMEOUT", 0)  # all are in this process: nobody comes
    store = dist.HashStore()
    one, two = (WorkerGroup(store, rank, 2) for rank in range(2))
    queue = WorkQueue(one, "film")

    def host(key):
        queue.post({0: 5, 1: 5})
        assert two._choose([key])
        die(one)

    with pytest.raises(Killed):
        one.run_all(["film"], host)
    again, _ = (WorkerGroup(store, rank, 2) for rank in range(2))
    assert again.run_all(["film"], lambda key: None) == {}


def test_who_is_interrupted_costs_a_file_nothing():
    store = dist.HashStore()

    def stop(key):
        raise KeyboardInterrupt

    for _ in range(crews.DEATHS + 1):
        with pytest.raises(KeyboardInterrupt):
            WorkerGroup(store, 0, 1).run_all(["a"], stop)
    assert WorkerGroup(store, 0, 1).run_all(["a"], lambda key: None) == {}


def test_nobody_takes_a_film_on_which_somebody_still_works():
    """Of a host that died, helpers work on; only then there is another one."""
    store = dist.HashStore()
    one, two = (WorkerGroup(store, rank, 2) for rank in range(2))
    one.change("film", one._begin)
    queue = WorkQueue(one, "film")
    queue.post(dict.fromkeys(range(4), 5))
    assert two._choose(["film"]) == ("film", queue.name)
    one = WorkerGroup(store, 0, 2)  # started again
    assert one._take(["film"], False) is None
    assert list(WorkQueue(two, "film", queue.name)) == [0, 1, 2, 3]
    two.change("film", two._leave)
    assert one._take(["film"], False) == "film"


@pytest.mark.parametrize("size", [2, 4])
def test_all_help_with_one_film(tmp_path, size):
    """And the error of one that helps is the film's."""
    source, store = draw_shots(tmp_path / "in.mkv", SHOTS), dist.HashStore()
    expected = color_film(StubPredictor(), VideoFile(source), tmp_path / "one.mkv")
    helped, made = [], {}

    def process(rank, name, predictor, told):
        group = WorkerGroup(store, rank, size)
        work = RenderJob(predictor, VideoFile(source), tmp_path / name, FilmConfig())

        def host(key):
            made[key] = work.run_as_owner(WorkQueue(group, key))

        def help(key, queue):
            helped.append(rank)
            work.run_as_helper(WorkQueue(group, key, queue))

        told[rank] = group.run_all([name], host, help)

    def run(name, predictors):
        told = {}
        threads = [threading.Thread(target=process, args=(rank, name, predictor, told))
                   for rank, predictor in enumerate(predictors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAITS)
        return [{key: str(error) for key, error in told[rank].items()} for rank in range(size)]

    def broken():
        raise UserError("a predictor is broken")

    class Slow(StubPredictor):
        def predict(self, *args):
            time.sleep(0.2)  # so that there is something to help with
            return super().predict(*args)

    assert run("all.mkv", [Slow() for _ in range(size)]) == [{}] * size and helped
    assert (tmp_path / "all.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()
    assert without_seconds(tmp_path / "all_shots.jsonl") == without_seconds(tmp_path / "one_shots.jsonl")
    assert [r.log_line() | {"seconds": 0} for r in made["all.mkv"]] == [
        r.log_line() | {"seconds": 0} for r in expected]
    failed = run("bad.mkv", [Slow(0, broken) for _ in range(size)])
    assert failed == [{"bad.mkv": "a predictor is broken"}] * size and not (tmp_path / "bad.mkv").exists()


class Responding(StubPredictor):
    """One that looks at a film through a response, or dies when it is asked for one."""

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
    """One by which the last shot is not found before somebody paints."""

    def __init__(self, response=None):
        super().__init__(response)
        self.painting = threading.Event()

    def palette(self, labs):
        assert self.shots < len(SHOTS) - 1 or self.painting.wait(WAITS)
        return super().palette(labs)

    def predict(self, L, palette):
        self.painting.set()
        return super().predict(L, palette)


class Brighter(StubPredictor):
    def palette(self, labs):
        return super().palette([lab + np.float32(9) for lab in labs])


def host_and_help(predictor, source, output):
    """Color a film by one process with the help of another one."""
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
        thread.join(WAITS)


@pytest.mark.parametrize("response", [None, FilmResponse(np.array([0.0, 100.0]), np.array([9.0, 109.0]))])
def test_shots_are_colored_while_others_are_found(tmp_path, response):
    """And once more, where the film turns out to have a response."""
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    color_film(Responding(response), VideoFile(source), tmp_path / "one.mkv")
    host_and_help(Awaited(response), source, tmp_path / "two.mkv")
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()
    assert without_seconds(tmp_path / "two_shots.jsonl") == without_seconds(tmp_path / "one_shots.jsonl")


def test_what_was_colored_before_all_was_found_outlives_its_host(tmp_path):
    source, killed = draw_shots(tmp_path / "in.mkv", SHOTS), Awaited(Killed)
    after, alone = StubPredictor(), StubPredictor()
    host_and_help(killed, source, tmp_path / "two.mkv")
    color_film(after, VideoFile(source), tmp_path / "two.mkv")
    color_film(alone, VideoFile(source), tmp_path / "one.mkv")
    assert killed.frames and killed.frames + after.frames == alone.frames
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()


def test_the_leader_decides_once(monkeypatch):
    monkeypatch.setattr(crews, "EXIT_TIMEOUT", 0)  # all are in this process: nobody comes
    store = dist.HashStore()
    leader, other = (WorkerGroup(store, rank, 2) for rank in range(2))
    assert leader.compute_on_leader("a", lambda: {"x": [1]}) == other.compute_on_leader("a", None) == {"x": [1]}

    def refuse():
        raise UserError("in the way")

    for group in (leader, WorkerGroup(store, 0, 2)):  # also when it is started again
        with pytest.raises(UserError, match="in the way"):
            group.compute_on_leader("b", refuse)
    with pytest.raises(SystemExit):
        other.compute_on_leader("b", refuse)


# ---------------------------------------------------------------------------------------------------------------------
# A process apart


def share_with_one_that_dies(group, deadly):
    def host(key):
        if key == deadly:
            os._exit(9)

    return group.run_all(["a", "b", "c"], host)


def end(group):
    os._exit(7)


def refuse(group):
    raise UserError("there is no checkpoint")


def test_of_many_files_one_that_kills_its_process_costs_only_itself(capfd):
    errors = run_isolated(["a", "b", "c"], share_with_one_that_dies, "b")
    assert list(errors) == ["b"] and "the process that worked on b ended 2 times" in str(errors["b"])
    assert capfd.readouterr().err.count("at work on b, its process ended with exit code 9") == 2
    with pytest.raises(UserError, match="cannot be begun: its process ended with exit code 7"):
        run_isolated(["a"], end)
    with pytest.raises(UserError, match="there is no checkpoint"):
        run_isolated(["a"], refuse)


def work_long(group, folder):
    """Say who works, and work on."""
    def host(key):
        (folder / f".{key}").write_text(str(os.getpid()))
        os.replace(folder / f".{key}", folder / key)
        time.sleep(WAITS)  # as long as anyone waits for it to end

    group.run_all(["a", "b"], host)


def alive(process):
    """True while a process is at work; a zombie, which waits for its parent alone, is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=WAITS / 2):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of processes in /proc")
def test_both_processes_end_together(tmp_path):
    """Ctrl-C in a terminal goes to all processes, kill -9 to one."""
    ways = {"Ctrl-C": (os.killpg, signal.SIGINT), "kill -9": (os.kill, signal.SIGKILL)}
    runs = {}
    for way in ways:
        (tmp_path / way).mkdir()
        with open(tmp_path / f"{way}.txt", "w") as said:
            runs[way] = start([sys.executable, __file__, "apart", tmp_path / way], said)
    try:
        for way, process in runs.items():
            wait_until((tmp_path / way / "a").exists)
            send, number = ways[way]
            send(process.pid, number)
        for way, process in runs.items():
            code = process.wait(WAITS / 2)
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
# By torchrun


def start(command, said):
    """Start a command in a group of its own, with the signals of a terminal, which a shell in the background takes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), stdout=said, stderr=said, env=environment, start_new_session=True)


def without_seconds(path):
    return re.sub(rb'("seconds": )[0-9.]+', rb"\1", path.read_bytes())


def made(folder):
    """All that a run made of films, pictures and a dataset, but the times that it took."""
    return {str(path.relative_to(folder)): without_seconds(path) for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".pt", ".txt")}


def run_both(home, folder):
    """The dataset of the good films of ``home``, and all its films colored."""
    generator.main(["--video_path", str(home / "in"), "--video_names", "a", "b", "--shots_len_thres", "5",
                    "--split", "0.5", "0.5", "0", "--save_path", str(folder / "dataset")])
    coloring.main(flags(checkpoint=home / "memory" / "best.pt", input=home / "in", output=folder / "out", batch_size=4,
                        device="cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a small checkpoint, films, one of which is none, and a picture, and what one process makes."""
    home = draw_dataset(tmp_path_factory.mktemp("crew"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EPOCH_STEPS", 2)
        train.main(flags(data_path=home, save_path=home / "memory", width=4, batch_size=6, end_epoch=1,
                         **WAYS["memory"]))
    (home / "in").mkdir()
    draw_shots(home / "in" / "a.mkv", SHOTS)
    draw_film(home / "in" / "b.mkv", times=range(6))
    (home / "in" / "bad.mp4").write_text("no film")
    write_image(home / "in" / "d.png", draw_picture(0))
    with pytest.raises(UserError, match="1 of 3 films failed"):
        run_both(home, home / "one")
    return home


def torchrun(home, folder, way, *nodes):
    """Start ``run_both`` by torchrun, once for each list of its arguments; returns (exit codes, all that was said)."""
    folder.mkdir()
    with open(folder / "said.txt", "w+") as said:
        runs = [start([sys.executable, "-m", "torch.distributed.run", *node, __file__, way, home, folder], said)
                for node in nodes]
        try:
            codes = [run.wait(WAITS) for run in runs]
        finally:
            for run in runs:
                run.terminate()
        return codes, (folder / "said.txt").read_text()


def starts(folder):
    """(film, shot) of each start to color a shot."""
    return [tuple(line.split()[:2]) for line in (folder / "starts.txt").read_text().splitlines()]


def test_two_machines_of_two_processes_make_what_one_makes(home, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = ["--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
            "--rdzv_id=test"]
    codes, said = torchrun(home, tmp_path / "four", "watch", node, node)
    assert codes == [1, 1], said
    assert made(tmp_path / "four") == made(home / "one")
    assert sorted(starts(tmp_path / "four")) == sorted(set(starts(tmp_path / "four")))
    assert said.count("error: 1 of 3 films failed") == 1 and said.count("bad.mp4 as a video") == 1
    assert said.count("colored ") == 3 and said.count("written to ") == 1


def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(home, tmp_path):
    codes, said = torchrun(home, tmp_path / "two", "kill", ["--standalone", "--nproc_per_node=2", "--max-restarts=1"])
    assert codes == [1] and (tmp_path / "two" / "killed.txt").exists(), said
    assert made(tmp_path / "two") == made(home / "one")
    begun = starts(tmp_path / "two")
    assert set(begun) == {("a.mkv", str(number)) for number in range(6)} | {("b.mkv", "0")}
    assert len(begun) <= len(set(begun)) + 2  # those in work


def main(way, *folders):
    if way == "apart":
        run_isolated(["a", "b"], work_long, Path(folders[0]))
        return
    home, folder = map(Path, folders)
    color_shot = episode.FilmRendering._color_shot

    def watched(work, number, *rest):
        with open(folder / "starts.txt", "a") as file:
            print(work.output.name, number, file=file)
        color_shot(work, number, *rest)
        if way == "kill" and number == 3 and not (folder / "killed.txt").exists():
            (folder / "killed.txt").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    episode.FilmRendering._color_shot = watched
    run_both(home, folder)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
    run_cli(lambda argv: main(*argv))
