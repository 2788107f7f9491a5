import sys

import pytest

from cosmic_tl import cli


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, output and errors."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cosmic-tl", *map(str, args)])
        with pytest.raises(SystemExit) as caught:  # it always exits
            cli.main()
        found = capsys.readouterr()
        return caught.value.code or 0, found.out, found.err

    return call
