"""Studies: a search for every setting and seed, with tests, tables and figures.

Read it to compare settings as Section 4.1 does; a single search needs none of it.
`python -m lamarck_jax.study` runs a study. `runner` loops over its searches, which
`executors` run in processes of this machine, on Ray or by `slurm`. `results` collects
the numbers of runs that `consistency` finds comparable into one file, from which
`analysis` computes the tests, `tables` Table 1, and `figures` (with `plots` and
`architecture`) the paper's figures. `before_training` measures what children keep of
their parents' accuracy.
"""
