"""Serve many packed adapters with one model: each sample of a batch has its own adapter.

A row is the k indices and weights of one sub-vector. A tile is one position of a sub-vector along
the features of a layer.

* `pool`: `AdapterPool`, the public class; `requirements`: checks of the model and settings
* `residents`: which adapters are in memory, and which are evicted
* `pages`, `banks`, `free_runs`: the device's memory for rows and banks
* `intake`: checks an adapter and prepares it for that memory
* `layout`, `frame`, `gather`, `batch`: make a batch's tensors from the rows in memory
* `update`, `own_tensors`: compute what is added to a layer's output
* `layers`: the hooks that add it
* `names`: what a layer's name shows about the rows of its input
* `calls`: checks that the model calls the layers, and for the batch
* `running`: which batch each thread is running
"""

from vbfmt.torch.pool.pool import AdapterPool

__all__ = ["AdapterPool"]
