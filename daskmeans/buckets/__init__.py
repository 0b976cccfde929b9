"""Rows by cluster, on disk."""
