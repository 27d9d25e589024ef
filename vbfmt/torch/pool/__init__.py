"""Many packed adapters beside one model, each sample of a batch with its own.

* `pool`: `AdapterPool`, what a program uses; `requirements`: of which models
* `residents`: which adapters are in memory, which of them leave
* `pages`, `banks`, `free_runs`: where their rows and banks are on the device
* `intake`: from an adapter to what is put into memory
* `layout`, `frame`, `batch`: from the rows of a batch's adapters to what layers read
* `update`, `own_tensors`: what is added to a layer's output
* `layers`: how it gets there
"""

from vbfmt.torch.pool.pool import AdapterPool

__all__ = ["AdapterPool"]
