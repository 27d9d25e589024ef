"""Read and write files: durable writes, memory-mapped reads, and PEFT's folders."""

import os

PathLike = str | os.PathLike[str]
