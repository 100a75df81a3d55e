"""Implementation of the commands train, evaluate and export, as functions of their settings."""
