"""Texts in files to embeddings in files."""
