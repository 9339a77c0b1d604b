"""The cases that need nothing but Python: one module for each kind of work."""

# In the order of the tables.
MODULES = tuple(
    f"{__name__}.{module}"
    for module in ("scheduling", "threads", "tasks", "sync", "streams", "processes", "startup", "memory")
)
