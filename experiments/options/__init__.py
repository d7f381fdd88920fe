"""What can be asked of each experiment: options, presets, and the checks made before anything runs.

A file for each experiment, importing nothing of the library, so that help and errors come at once.
"""
