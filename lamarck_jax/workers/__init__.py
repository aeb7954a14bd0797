"""Processes that train the children of a generation side by side.

`pool` hands candidates to workers, replaces those that die, and gives the outcomes back
in order. The processes are those of `local`, on this machine, forked from the one of
`fork_server`, or of `ray_actors`, on a cluster. `evaluator` runs inside each of them.
Nothing here touches a run directory: the search alone records.

Read it to run a search on many devices in another way, or to find out what happens to a
child whose worker is killed.
"""
