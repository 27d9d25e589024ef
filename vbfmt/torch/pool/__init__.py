"""Many packed adapters beside one model, each sample of a batch with its own.

* `pool`: `AdapterPool`, the public class; `requirements`: checks of the model and settings
* `residents`: which adapters are in memory, and which are evicted
* `pages`, `banks`, `free_runs`: the device's memory for their rows and banks
* `intake`: the preparation of an adapter for that memory
* `layout`, `frame`, `gather`, `batch`: from the rows in memory to the tensors of a batch
* `update`, `own_tensors`: what is added to a layer's output
* `layers`: the hooks that add it
* `running`: the batches that threads run now
"""

from vbfmt.torch.pool.pool import AdapterPool

__all__ = ["AdapterPool"]
