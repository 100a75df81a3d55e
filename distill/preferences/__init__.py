"""Candidates of a teacher that writes text, their scores by students, preference pairs, and alignment by DPO."""
