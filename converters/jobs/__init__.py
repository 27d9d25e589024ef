"""Run one operation on many adapters, in shards, on a process pool or a Ray cluster.

>>> from vbfmt.converters import jobs
>>> task = jobs.Task("pack", options={"topk": 2})
>>> for outcome in jobs.run(task, jobs.items(["a", "b"], "packed", task)):
...     print(outcome.source, outcome.status)

If an item fails, its outcome says so, and the job continues with the other items. A job that was
killed can be started again with the same arguments. It then does only what is missing.
"""

from vbfmt.converters.jobs.inputs import collected, items
from vbfmt.converters.jobs.run import ENGINES, run
from vbfmt.converters.jobs.tasks import OPERATIONS, Item, Outcome, Task

__all__ = ["ENGINES", "OPERATIONS", "Item", "Outcome", "Task", "collected", "items", "run"]
