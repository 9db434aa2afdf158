"""math-verify as the judge of equality, in worker processes with our own time limit."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

from tokenscale.core.errors import CapabilityError

SECONDS = 5.0
START_SECONDS = 120.0
KEPT_VERDICTS = 100_000
_WORKER = "tokenscale.sequence_level.answers.worker"

Pair = tuple[str, str]


class _Worker:
    """One process. Ended and started again when a pair takes longer than its time, or ends the process."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def equal(self, pair: Pair, seconds: float) -> bool:
        if self._process is not None and self._process.poll() is not None:
            self.end()
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(pair) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except (queue.Empty, OSError):
            line = ""
        if not line:
            self.end()
        return line.strip() == "true"

    def end(self) -> None:
        """Ends the process, however busy it is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # of what it was not read
                process.stdin.close()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        # It imports from where this process does, and from no other folder that it happens to be started in.
        command = [sys.executable, "-P", "-m", self._module]
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )
        self._process, self._lines = process, queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, self._lines), daemon=True).start()
        try:
            started = self._lines.get(timeout=START_SECONDS)
        except queue.Empty:
            started = ""
        if started.strip() != '"ready"':
            self.end()
            raise CapabilityError(
                "math-verify does not start", f"run `{' '.join(command)}` and read what it says; or use answers='math'"
            )
        return process


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Passes the lines of a process on; an empty one says that it has ended."""
    assert process.stdout is not None
    with process.stdout as stdout:
        for line in stdout:
            lines.put(line)
    lines.put("")


class Judge:
    """Says of pairs of mathematical answers whether math-verify finds them equal.

    A pair that takes longer than `seconds` of wall-clock time, or that ends its process (out of memory),
    counts as unequal, and the process is replaced. Verdicts are kept: a pair is judged once, in one
    direction whichever of the two is named first (math-verify may tell the directions apart).
    Up to `workers` processes run, started when they are needed; `close` ends them.

    Raises CapabilityError where math-verify is not installed or its process does not start.
    """

    def __init__(self, workers: int = 2, seconds: float = SECONDS, module: str = _WORKER) -> None:
        if module == _WORKER and find_spec("math_verify") is None:
            message = "answers of the kind 'math-verify' are compared by math-verify, which is not installed"
            raise CapabilityError(message, "pip install 'tokenscale[math]'; or use the kind 'math'")
        self._seconds = seconds
        self._workers = [_Worker(module) for _ in range(workers)]
        # The one that ended its work last is taken first, so that no more start than are needed.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math-verify")
        self._verdicts: dict[Pair, bool] = {}

    def equal(self, pairs: Sequence[Pair]) -> list[bool]:
        """A verdict for each pair, whichever of the two is named first."""
        asked = [(min(pair), max(pair)) for pair in pairs]
        if len(self._verdicts) > KEPT_VERDICTS:
            self._verdicts.clear()
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._verdicts]
        for pair, verdict in zip(new, self._threads.map(self._judge, new), strict=True):
            self._verdicts[pair] = verdict
        return [self._verdicts[pair] for pair in asked]

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown()
        for worker in self._workers:
            worker.end()

    def _judge(self, pair: Pair) -> bool:
        worker = self._idle.get()
        try:
            return worker.equal(pair, self._seconds)
        finally:
            self._idle.put(worker)


def shared() -> Judge:
    """The judge of this process, made when it is first asked for and closed at exit."""
    # A fork has the pipes of its parent, and none of its threads.
    return _judge_of(os.getpid())


@cache
def _judge_of(_process: int) -> Judge:
    judge = Judge()
    atexit.register(judge.close)
    return judge
