"""k-means: the estimator, its engine, and the model on disk."""
