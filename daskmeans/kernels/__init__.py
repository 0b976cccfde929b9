"""Arithmetic on one block of rows. Nothing here knows Dask or files, nor which device to use."""
