"""Background jobs: one at a time, in a thread, with progress and cancellation."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from utils import UserError


class Canceled(Exception):
    """The job was canceled."""


@dataclass
class BackgroundJob:
    """A job and its progress."""

    title: str = ""
    progress: float = 0.0  # in [0, 1]
    message: str = ""  # current step, for the user
    error: str = ""  # why the job failed, one sentence
    started: float = field(default_factory=time.monotonic)
    cancel: threading.Event = field(default_factory=threading.Event)
    running: bool = True

    def check_canceled(self) -> None:
        """Raise Canceled if the job was canceled."""
        if self.cancel.is_set():
            raise Canceled

    def begin_stage(self, title: str) -> None:
        """Set the title of the next stage of the job, and reset the progress."""
        self.title, self.progress, self.message, self.started = title, 0.0, "", time.monotonic()

    def seconds_left(self) -> float | None:
        """Return the estimated remaining time of the stage, or None if the job has ended or the stage just began."""
        spent = time.monotonic() - self.started
        can_estimate = self.running and self.progress > 0.02 and spent > 2
        return spent * (1 - self.progress) / self.progress if can_estimate else None


class JobRunner:
    """Runs one background job at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.job = BackgroundJob(running=False)
        self.thread: threading.Thread | None = None

    def start(self, title: str, run: Callable[[BackgroundJob], None]) -> None:
        """Start ``run(job)`` in a thread. Raises UserError while another job is running."""
        with self.lock:
            if self.job.running:
                raise UserError(f"{self.job.title} is still running; wait for it or cancel it")
            self.job = job = BackgroundJob(title)
        self.thread = threading.Thread(target=self._run, args=(job, run), name=title, daemon=True)
        self.thread.start()

    @staticmethod
    def _run(job: BackgroundJob, run: Callable[[BackgroundJob], None]) -> None:
        try:
            run(job)
            job.progress = 1.0
        except Canceled:
            job.message = "canceled"
        except UserError as error:
            job.error = str(error)
        except BaseException as error:
            job.error = f"internal error during {job.title}: {type(error).__name__}: {error}"
            raise
        finally:
            job.running = False

    def cancel(self, timeout: float = 0.0) -> None:
        """Cancel the job and wait up to ``timeout`` seconds for its end."""
        self.job.cancel.set()
        if self.thread is not None:
            self.thread.join(timeout)
