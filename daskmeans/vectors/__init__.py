"""Files to dask dataframes to matrices, and back; rows are checked here, once."""
