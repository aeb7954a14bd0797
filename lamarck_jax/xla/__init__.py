"""How training becomes fast on each platform, with the same values up to rounding.

Read it only for speed: README.md beside this file says what is where.
"""
