"""Embeddings in files, Dask dataframes and matrices; rows are checked here, once."""
