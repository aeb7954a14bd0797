"""The run directory: what a search writes, and reads back to resume.

  records         `RunDirectory`, and functions that read a run without changing it
  events          the lines of events.jsonl: format, checksums, repair after a crash
  history         what the events lead to: the state of a search, and its result
  weights         trees of arrays as safetensors files, and the names of these files
  training_state  an interrupted completion as arrays
  digests         what binds the files of a run to one another
  lock            keeps a directory to one process, and stops one that has lost it
  durable         writes that survive a crash; every writer of the project uses them
  progress        what a search prints while it runs

To read runs, `records` is enough. `durable` is for code that writes a file, the others
are for changes to what is recorded.
"""
