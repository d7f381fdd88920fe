"""Units of all experiments, and the error of whoever gave a command."""

DT = 0.2  # seconds an image is seen
STRETCH = 128  # images in a stretch of time


class UserError(Exception):
    """What can only be put right by whoever gave the command: one line, no traceback."""
