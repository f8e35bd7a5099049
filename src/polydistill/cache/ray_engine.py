"""Labelling on Ray: actors of one machine or of a cluster, with the same shards as any other engine.

Every shard is a pure function of its texts, so it does not matter who makes it, when, or how often: a worker that is
lost is replaced, and the shards that it had are made again, to the same bytes. Only workers that have started are
given shards, so one for which the cluster has no place holds nobody up.
"""

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from polydistill.cache.labeller import Label, ShardTask
from polydistill.cache.manifest import CacheError

REACHED_S = 5.0
"""Seconds in which a cluster's address must answer."""

STARTED_S = 300.0
"""Seconds in which a worker must start while no other is at work; a cluster may have to find a machine for it."""


class RayMissingError(ValueError):
    """Ray is not installed, or its cluster cannot be reached."""


class WorkerLostError(CacheError):
    """No worker started, or a shard could not be made however often its worker was replaced."""


@dataclass(frozen=True)
class OnRay:
    """Actors, each with its own copy of the teachers.

    Attributes:
        workers: number of actors.
        address: of a cluster, or `auto`; a Ray of this machine is started and stopped again when None.
        cpus: that each actor takes.
        gpus: that each actor takes.
        tries: of a shard or a start whose worker is lost, beyond the first.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    tries: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    def run(self, make: Callable[[], Label], tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        """As `Engine.run`; at most two shards per worker are under way, whatever their number.

        Raises:
            RayMissingError: Ray is not installed, or the cluster does not answer.
            WorkerLostError: a shard's worker was lost too often, or none started.
        """
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            self._begin(ray)
        try:
            yield from _Crew(ray, self, make).run(tasks)
        finally:
            if started:
                ray.shutdown()

    def _begin(self, ray: Any) -> None:
        host, colon, port = (self.address or "").rpartition(":")
        if colon and port.isdigit() and "/" not in host:
            try:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=REACHED_S).close()
            except OSError as error:
                raise RayMissingError(f"Ray at {self.address} cannot be used: {error}") from None
        if self.address is None:  # Ray's own default, 15, starves its workers beside anything else
            os.environ.setdefault("RAY_worker_niceness", "0")
        here = {"num_cpus": max(1, round(self.workers * self.cpus)), "include_dashboard": False}
        try:
            ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level="warning",
                **(here if self.address is None else {}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RayMissingError(f"Ray at {self.address or 'this machine'} cannot be used: {reason}") from error
        found = ray.cluster_resources().get("GPU", 0)
        if self.address is None and self.gpus > found:
            ray.shutdown()
            raise RayMissingError(f"each worker takes {self.gpus:g} GPUs, and Ray finds {found:g} on this machine")


@dataclass(eq=False)
class _Worker:
    actor: Any
    starting: Any
    doing: dict[Any, ShardTask] = field(default_factory=dict)


class _Crew:
    """Workers, what each has in hand, and what is to be made again."""

    def __init__(self, ray: Any, engine: OnRay, make: Callable[[], Label]) -> None:
        self.ray, self.engine, self.make = ray, engine, ray.put(make)
        # Ray's own restarts are not used: a lost worker's shards would wait for it while others have none.
        options = {"num_cpus": engine.cpus, "num_gpus": engine.gpus, "max_restarts": 0, "max_task_retries": 0}
        self.actor = ray.remote(**options)(LabellingActor)
        self.again: deque[ShardTask] = deque()
        self.losses: Counter[int | None] = Counter()
        self.workers: list[_Worker] = []

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        remaining = iter(tasks)
        if (first := next(remaining, None)) is None:
            return
        self.again.append(first)
        self.workers = [self._started() for _ in range(self.engine.workers)]
        try:
            while self._hand_out(remaining):
                worker = self._heard()
                try:
                    made = self._taken(worker)
                except self.ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                except self.ray.exceptions.RayError as error:
                    self._replace(worker, error)
                else:
                    yield from made
        finally:
            for worker in self.workers:
                self.ray.kill(worker.actor)

    def _started(self) -> _Worker:
        actor = self.actor.remote()
        return _Worker(actor, actor.started.remote())

    def _hand_out(self, remaining: Iterator[ShardTask]) -> bool:
        """Two shards to every worker that has started, but one alone if a worker was lost with it: of two, either may
        be why. False when none is left and all are made.
        """
        idle = False
        for worker in self.workers:
            while worker.starting is None and len(worker.doing) < 2 and not any(map(self._lost, worker.doing.values())):
                task = self.again.popleft() if self.again and not worker.doing else next(remaining, None)
                if task is None:
                    idle = True
                    break
                worker.doing[worker.actor.shard.remote(self.make, task)] = task
        return not idle or any(worker.doing for worker in self.workers)

    def _lost(self, task: ShardTask) -> bool:
        return self.losses[task.index] > 0

    def _heard(self) -> _Worker:
        """The first worker that has started, has made its first shard, or is lost."""
        busy = any(worker.doing for worker in self.workers)
        first = {next(iter(worker.doing), worker.starting): worker for worker in self.workers}
        first.pop(None, None)  # a worker for which no shard is left
        ready, _ = self.ray.wait(list(first), num_returns=1, timeout=None if busy else STARTED_S)
        if not ready:
            has = self.ray.cluster_resources()
            raise WorkerLostError(
                f"no worker started in {STARTED_S:.0f} s: each takes {self.engine.cpus:g} CPUs and "
                f"{self.engine.gpus:g} GPUs, and Ray has {has.get('CPU', 0):g} and {has.get('GPU', 0):g} in all, other "
                "work's included; ask for less, or build again when there is room: finished shards are kept"
            )
        return first[ready[0]]

    def _taken(self, worker: _Worker) -> list[tuple[int, bytes]]:
        if worker.starting is not None:
            self.ray.get(worker.starting)
            worker.starting = None
            return []
        ref, task = next(iter(worker.doing.items()))
        data = self.ray.get(ref)
        del worker.doing[ref]
        return [(task.index, data)]

    def _replace(self, worker: _Worker, error: Exception) -> None:
        had: list[int | None] = [task.index for task in worker.doing.values()]
        for lost in had or [None]:
            self.losses[lost] += 1
            if self.losses[lost] > self.engine.tries:
                what = "a worker that had not started" if lost is None else f"shard {lost}: its worker"
                raise WorkerLostError(
                    f"{what} was lost {self.losses[lost]} times; look at its memory, and build again: finished shards "
                    "are kept"
                ) from error
        self.again.extend(worker.doing.values())
        self.ray.kill(worker.actor)
        self.workers[self.workers.index(worker)] = self._started()


class LabellingActor:
    """A worker: teachers that stay loaded from shard to shard."""

    def __init__(self) -> None:
        self.label: Label | None = None

    def started(self) -> None:
        """Answers when the worker has started."""

    def shard(self, make: Callable[[], Label], task: ShardTask) -> bytes:
        """The file of a shard.

        Args:
            make: makes what labels, for the first shard.
            task: what the shard is made of.
        """
        if self.label is None:
            self.label = make()
        return self.label(task)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise RayMissingError("--engine ray needs Ray: pip install 'polydistill[ray]'") from error
    return ray
