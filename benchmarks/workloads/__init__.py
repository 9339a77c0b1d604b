"""The cases: one module for each kind of work. README.md tells how to add one."""

# In the order of the tables.
MODULES = (
    "scheduling",
    "threads",
    "tasks",
    "sync",
    "echo",
    "connections",
    "http",
    "processes",
    "startup",
    "memory",
)
