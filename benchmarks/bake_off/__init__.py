"""A list of runs that fills a table with seeds: ``python -m benchmarks.bake_off --minutes N --data-root DIR``."""
