"""One module per task, each with a ``TASK``; heavy imports inside the models only (see the registry)."""
