"""How training becomes fast on each platform; nothing here changes a result.

Read it only for speed: README.md beside this file says what is where.
"""
