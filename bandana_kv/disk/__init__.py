"""What the bytes of a store mean, and who may write them: all that is read for ever.

Imports the contract of adapters, and cache for what a plan says; never what makes or serves it.
"""
