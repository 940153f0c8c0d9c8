"""Commands as they are typed."""

from __future__ import annotations

from bqjax.cli.arguments import main


def run(*args):
    return main([str(a) for a in args])


def refused(capsys, *args):
    """Runs a command that must fail; its one line of explanation."""
    capsys.readouterr()
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert err.startswith("bqjax: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err
