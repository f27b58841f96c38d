"""The subcommands of `python -m export`, one file each: options, messages, and a call of the code that does the work.

Importing them loads no numpy, torch or tritonclient, so that `--help` is instant.
"""
