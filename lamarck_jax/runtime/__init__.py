"""Process-wide settings and the shell around a program.

`process` applies the settings of a search: memory (`allocator`), devices (`devices`)
and the cache of compiled programs (`compilation_cache`). `command_line`, `signals` and
`dropped_signals` serve the entry points; `environment` describes the machine, and
`stopwatch` times the phases of an evaluation.

Read it to write a program of your own around `search.run`, which sets none of this,
or to find out why a process uses the devices, memory or files that it does.
"""
