"""What the commands of ``featstore`` do once their arguments are parsed; one file for each, or for two that belong
together. Each has a function that takes the arguments and returns the exit status."""
