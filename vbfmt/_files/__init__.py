"""Read and write files: durable writes, memory-mapped reads, and PEFT's folders."""
