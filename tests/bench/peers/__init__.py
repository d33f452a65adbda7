"""Other servers that do the same, each as its users would write it; started by the benchmark.

Each takes PORT and REDIS_PORT from the environment, reads `PSUBSCRIBE jobs:*` (those that have a way of
their own to take events say so), and lets a client watch one job by its id.
"""
