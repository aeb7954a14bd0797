"""What a process is set to: devices, memory, compiled programs, signals, flags.

For whoever writes a program around the search; the search itself sets nothing.
"""
