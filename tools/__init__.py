"""Command lines: arguments in, library calls, a table or a picture out."""
