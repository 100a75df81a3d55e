"""The student: a model split into feature and head, and its starting weights."""
