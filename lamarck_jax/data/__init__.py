"""Images as arrays: `datasets.load`, and the readers behind it.

`datasets` is all that the search needs; read the rest to add a source of images.
"""
