"""What a search writes, and reads back to resume.

For whoever reads runs, or changes what is recorded.
"""
