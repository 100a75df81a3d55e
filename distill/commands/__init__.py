"""What the commands and functions of ``distill`` run: train, evaluate and export, each one function of its settings."""
