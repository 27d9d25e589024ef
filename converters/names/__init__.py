"""What a module or a tensor is called: in an adapter, in the running model, in the base's files.

transformers renames tensors when it loads them (`transformers.conversion_mapping`), so a tensor may
have one name in the running model, where adapters take theirs from, and another on the disk.
"""
