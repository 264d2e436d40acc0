"""What the operating system may refuse, told as what it is: syncs, permission, threads, an end.

Imports errors alone, and nothing of tables or blocks.
"""
