"""The systems: Lightning modules that wire models, data, losses, optimisers and logging. The mathematics is below."""
