"""The commands of ``featstore``, one file each: ``DESCRIPTION``, ``add_arguments`` and ``run``, which returns the exit
status. Only the file of the command that was asked for is imported."""
