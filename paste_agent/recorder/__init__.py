"""The flight recorder: a process's own memory-mapped file of what it is doing and of what it has finished."""
