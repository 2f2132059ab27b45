"""Load against running clusters from many generators at once, their latencies in one histogram.

With Ray the generators are tasks that spread over the cluster's machines, on a laptop all on the one there is; without
it they are threads here. They begin together: each gets ready, arrives at a gate, and goes on when all have arrived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Final

from benchmarks.generator import Generated, Target, generate
from benchmarks.loads import Load, LoadResult, merge
from benchmarks.programs import GRACE_S, LoadError

START_TIMEOUT_S: Final = 120.0  # until all generators are ready: machines that start their first Python for us
_POLL_S: Final = 0.5
Progress = Callable[[float], None]  # called now and then with the seconds since the start


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One generator's part."""

    number: int
    target: Target
    load: Load


def jobs_for(targets: Sequence[Target], load: Load, tasks: int) -> list[Job]:
    """As many jobs, over the targets in turn; a rate is for all of them together, clients are each one's."""
    rate_tps = None if load.rate_tps is None else load.rate_tps / tasks
    return [
        Job(
            number=number,
            target=targets[number % len(targets)],
            load=replace(load, seed=load.seed + number, rate_tps=rate_tps),
        )
        for number in range(tasks)
    ]


def run_here(jobs: Sequence[Job], progress: Progress = lambda _: None) -> list[Generated]:
    """In threads, each of which starts a program. Raises LoadError."""
    gate = threading.Barrier(len(jobs), timeout=START_TIMEOUT_S)

    def arrive() -> None:
        gate.wait()

    def run(job: Job) -> Generated:
        try:
            return generate(job.number, job.target, job.load, arrive)
        except threading.BrokenBarrierError:
            raise LoadError("another load generator did not get ready") from None
        except BaseException:
            gate.abort()  # the others shall not wait for it
            raise

    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        started_s = time.monotonic()
        while not all(future.done() for future in futures):
            progress(time.monotonic() - started_s)
            time.sleep(_POLL_S)
        return [future.result() for future in as_completed(futures)]


def run_on_ray(jobs: Sequence[Job], progress: Progress = lambda _: None) -> list[Generated]:
    """As tasks of the Ray cluster that this process is connected to. Raises LoadError."""
    import ray
    from ray import cloudpickle

    import benchmarks

    cloudpickle.register_pickle_by_value(benchmarks)
    gate = ray.remote(num_cpus=0, max_concurrency=len(jobs) + 1)(_Gate).remote(len(jobs))
    # No CPUs are asked for: generators shall run on machines that are full of engines, too.
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")(_task)
    refs = [task.remote(gate, job, START_TIMEOUT_S) for job in jobs]
    limit_s = START_TIMEOUT_S + max(job.load.seconds for job in jobs) + GRACE_S
    started_s = time.monotonic()
    waiting = refs
    try:
        while waiting and time.monotonic() - started_s < limit_s:
            _, waiting = ray.wait(refs, num_returns=len(refs), timeout=_POLL_S)
            progress(time.monotonic() - started_s)
        if waiting:
            raise LoadError(f"{len(waiting)} of {len(jobs)} load generators did not end within {limit_s:g} s")
        found: list[Generated] = ray.get(refs)
    except ray.exceptions.RayError as error:
        raise LoadError(f"a load generator failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for ref in waiting:  # no others: a cancellation that meets a task's end brings this process down
            ray.cancel(ref, force=True)
        ray.kill(gate)
        cloudpickle.unregister_pickle_by_value(benchmarks)
    return found


def together(found: Sequence[Generated]) -> dict[str, LoadResult]:
    """By server, and of all."""
    places = dict.fromkeys(each.place for each in found)
    results = {place: merge([each.result for each in found if each.place == place]) for place in sorted(places)}
    return {**results, "all": merge([each.result for each in found])}


class _Gate:
    """Opens when `count` have arrived."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)

    def arrive(self, timeout_s: float) -> None:
        self._barrier.wait(timeout_s)


def _task(gate: Any, job: Job, timeout_s: float) -> Generated:
    import ray

    def arrive() -> None:
        ray.get(gate.arrive.remote(timeout_s), timeout=timeout_s)

    return generate(job.number, job.target, job.load, arrive)
