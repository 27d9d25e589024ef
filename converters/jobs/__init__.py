"""Jobs over fleets: one operation on many adapters, in shards, on a process pool or a Ray cluster.

>>> from vbfmt.converters import jobs
>>> task = jobs.Task("pack", options={"topk": 2})
>>> for outcome in jobs.run(task, jobs.items(["a", "b"], "packed", task)):
...     print(outcome.source, outcome.status)

A failure becomes an outcome, and the job goes on with the other items. A job that was killed can be
started again with the same arguments; it then does only what is missing.
"""

from vbfmt.converters.jobs.inputs import collected, items
from vbfmt.converters.jobs.run import ENGINES, run
from vbfmt.converters.jobs.tasks import OPERATIONS, Item, Outcome, Task

__all__ = ["ENGINES", "OPERATIONS", "Item", "Outcome", "Task", "collected", "items", "run"]
