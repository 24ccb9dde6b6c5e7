"""benchmarks/busy.py: what runs beside, and the table."""

import subprocess

import pytest

from benchmarks import busy


def test_what_runs_beside_ends_with_the_measuring(monkeypatch):
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: None)
    started, begin = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args: started.append(begin(*args)) or started[-1])
    with pytest.raises(ZeroDivisionError), busy.running("while True: pass"):
        assert started[0].poll() is None
        raise ZeroDivisionError
    assert started[0].poll() is not None
    with busy.running(None):
        assert len(started) == 1


def test_medians_beside_ours_alone(monkeypatch, capsys):
    seconds = iter([(2, 4), (3, 4), (3, 6), (9, 9), (4, 8), (20, 40), (4, 2), (5, 6), (5, 8), (9, 9), (6, 8), (20, 40)])
    monkeypatch.setattr(busy, "timed", lambda checkpoint, spinning: next(seconds))
    monkeypatch.setattr(busy, "BESIDE", dict.fromkeys(busy.BESIDE))
    busy.main(["best.pt", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 6
    assert lines[2] == "| nothing | sleep (ours) | 3.0 s | 1.00 | 3.0 s | 1.00 |"
    assert lines[4] == "| a busy loop on one core | sleep (ours) | 4.0 s | 1.33 | 7.0 s | 2.33 |"
    assert lines[7] == "| another OpenMP program | spin | 20.0 s | 6.67 | 40.0 s | 13.33 |"
