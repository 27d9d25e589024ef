"""Foreign formats, one file each: ``read(path) → Adapter`` and ``write(adapter, path, …)``.

* `vbfmt.converters.peft`: PEFT VB-LoRA checkpoints (logits or top-k), read and written.
* `vbfmt.converters.lora`: standard LoRA folders, written.
"""
