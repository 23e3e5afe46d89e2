"""Other tools beside this one, on the same student: ``python -m benchmarks.peers``."""
