"""How a model is run, and on what: calls, batches, outputs, passes that are watched, counted or timed."""
