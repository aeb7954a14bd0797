"""Process-wide settings and the shell around a program.

`process` applies the settings of a search: memory (`allocator`), devices (`devices`)
and the cache of compiled programs (`compilation_cache`). `command_line`,
`standard_streams`, `signals` and `dropped_signals` serve the entry points, `paths` all
that takes a path; `environment` describes the machine, and `stopwatch` times the phases
of an evaluation. `worker_processes`, `gpu_sharing` and `ray_cluster` serve whatever
starts workers. `jax_settings` has what a search needs whatever the process has set.

Read it to write a program of your own around `search.run`, which of all this applies
`jax_settings` alone, or to find out why a process uses the devices, memory or files
that it does.
"""
