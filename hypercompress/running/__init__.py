"""A model as it runs: calls, batches and outputs, its copies and BatchNorms, passes watched, counted and timed."""
