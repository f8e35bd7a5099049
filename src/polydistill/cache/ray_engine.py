"""Labelling on Ray: actors of one machine or of a cluster, with the same shards as any other engine.

Every shard is a pure function of its texts, so it does not matter who makes it, when, or how often: a worker that is
lost is started again, and the shard that it had in hand is made again, to the same bytes.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from polydistill.cache.labeller import Label, ShardTask
from polydistill.cache.manifest import CacheError

REACHED_S = 5.0
"""Seconds in which a cluster's address must answer."""


class RayMissingError(ValueError):
    """Ray is not installed, or its cluster cannot be reached."""


class WorkerLostError(CacheError):
    """A shard could not be made, however often its worker was started again."""


@dataclass(frozen=True)
class OnRay:
    """Actors, each with its own copy of the teachers.

    Attributes:
        workers: number of actors.
        address: of a cluster, or `auto`; a Ray of this machine is started and stopped again when None.
        cpus: that each actor takes.
        gpus: that each actor takes.
        tries: of a shard whose worker is lost, beyond the first.
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
            WorkerLostError: a shard's worker was lost too often.
        """
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            self._begin(ray)
        try:
            yield from self._run(ray, make, tasks)
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

    def _run(self, ray: Any, make: Callable[[], Label], tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": -1, "max_task_retries": self.tries}
        actor, shared = ray.remote(**options)(LabellingActor), ray.put(make)
        idle = [actor.remote() for _ in range(self.workers)] * 2
        waiting: dict[Any, tuple[int, Any]] = {}
        try:
            for task in tasks:
                worker = idle.pop(0)
                waiting[worker.shard.remote(shared, task)] = (task.index, worker)
                if not idle:
                    yield from self._finished(ray, waiting, idle)
            while waiting:
                yield from self._finished(ray, waiting, idle)
        finally:
            for worker in {id(w): w for w in [*idle, *(w for _, w in waiting.values())]}.values():
                ray.kill(worker)

    def _finished(self, ray: Any, waiting: dict[Any, tuple[int, Any]], idle: list[Any]) -> Iterator[tuple[int, bytes]]:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        index, worker = waiting.pop(ready)
        try:
            data = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            raise WorkerLostError(
                f"shard {index}: its worker was lost {self.tries + 1} times; look at its memory, and build again: "
                "finished shards are kept"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        idle.append(worker)
        yield index, data


class LabellingActor:
    """A worker: teachers that stay loaded from shard to shard."""

    def __init__(self) -> None:
        # Nothing is given here: an argument in the object store may be gone when the actor is started again.
        self.label: Label | None = None

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
