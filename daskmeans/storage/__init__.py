"""Writing outputs: complete or not at all."""
