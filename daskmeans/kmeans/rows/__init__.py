"""Rows as float32 blocks that stay on workers."""
