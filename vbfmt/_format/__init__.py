"""The specification, section by section: container, header, canonical msgpack and rules."""
