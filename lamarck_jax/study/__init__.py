"""Settings x seeds: running them, the paper's tests, tables and figures.

For whoever compares settings; a single search needs none of it.
"""
