"""What is done to a store that exists: verified, repaired, inspected, rolled back, advised on.

Imports all that loads and serves; none of those import it.
"""
