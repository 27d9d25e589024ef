"""Read the files of converters: checkpoint folders, safetensors and pickles."""
