"""Files that converters read: checkpoint folders, safetensors, pickles."""
