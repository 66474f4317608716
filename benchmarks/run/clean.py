"""Cold and end-to-end time of a real library: ``python -m benchmarks.run.clean DIRECTORY``.

benchmarks.run.timing starts it once in every round.  For each quantity the workload runs in a
process that contains the library and nothing else; what is found is reported on standard output
(benchmarks.run.launch.report_found).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from allocators.base.operation import TOUCH_READ, TOUCH_WRITE
from benchmarks.events.events import Events, read_only
from benchmarks.replay.metrics import COLD, END_TO_END
from benchmarks.run.launch import end_with_parent, report_found
from benchmarks.workloads import Workload


def without_touches(workload: Workload) -> Workload | None:
    """Return the workload without its touch events; None if they cannot be left out."""
    if workload.events is None:
        source = workload.program.length if workload.program else workload.stream.facts.events
        return workload if source == workload.operations else None
    kept = ~np.isin(workload.events.op, (TOUCH_READ, TOUCH_WRITE))
    if kept.all():
        return workload
    columns = (column[kept] if len(column) else column for column in workload.events)
    return replace(workload, events=read_only(Events(*columns)))


def main(directory: Path) -> None:
    """Measure the run in ``directory``.  Raises LibraryError, HostError or WorkloadError."""
    import yaml

    from benchmarks.real.memory import clean_seconds
    from benchmarks.run.job import check_job

    job = check_job(yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")))
    operations = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["operations"]
    workload = job.load_workload(trusted=True)
    times, gaps = {}, {}
    if (unused := without_touches(workload)) is None:
        gaps[COLD] = "the touch events of a generator or stream cannot be left out"
    else:
        seconds = clean_seconds(job.library, unused, touch="nothing")
        times[COLD] = seconds * 1e9 / operations
    times[END_TO_END] = clean_seconds(job.library, workload) * 1e9 / operations
    report_found(times=times, gaps=gaps)


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
