"""Arithmetic on one block of rows. Nothing here knows Dask, files or devices' names."""
