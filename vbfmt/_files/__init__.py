"""Files: durable writes, mapped reads, and the folders that PEFT reads."""
