"""Train a small student from stored features of a large teacher. The teacher itself is never loaded here.

Importing this package is cheap; the parts that need torch are imported where they are used.
"""
