"""The command line of ``bqjax``: arguments in one module, a module for what each command does."""

from bqjax.cli.arguments import main

__all__ = ["main"]
