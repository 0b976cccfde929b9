"""Where tasks run, and what there is for them."""
