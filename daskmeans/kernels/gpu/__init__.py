"""The same computations on a GPU, and what they take of its memory."""
