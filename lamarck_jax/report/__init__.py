"""Views of a run or a study: an HTML page, its server, and TensorBoard.

Read it to change what users see; nothing here influences a search.
`python -m lamarck_jax.report` writes or serves the page. `html_page` collects what the
page shows and renders it with the files in `assets`; `server` serves it while a search
runs; `tensorboard` writes scalars instead.
"""
