"""The run directory: what a search writes, and reads back to resume.

  records         `RunDirectory`: what a search writes, and reads back
  reading         functions that read a run without changing it
  events          the lines of events.jsonl: format, checksums, repair after a crash
  history         what the events lead to: the state of a search, and its result
  dataset_record  the data set that a run was started with, compared at every start
  weights         trees of arrays as safetensors files, and the names of these files
  training_state  an interrupted completion as arrays
  digests         what binds the files of a run to one another
  lock            keeps a directory to one process, and stops one that has lost it
  set_aside       names of their own for what would otherwise be overwritten
  durable         writes that survive a crash; every writer of the project uses them
  progress        what a search prints while it runs

To read runs, `records` is enough. `durable` is for code that writes a file, the others
are for changes to what is recorded.
"""
