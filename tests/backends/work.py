"""What workers do in the tests."""

import os
import signal
import time
from pathlib import Path

from cosmic_tl.errors import CosmicError


def tenfold(model, number):
    return 10 * number


def refuse(model, number):
    raise CosmicError(f"number: found {number}")


def fail(model, number):
    raise ZeroDivisionError("by nought")


def die_once(model, folder, number):
    """Dies with its process where no file says that it has done so before."""
    marker = Path(folder) / str(number)
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return number, os.getpid()


def wait(model, number):
    time.sleep(0.3)


def die(model):
    os.kill(os.getpid(), signal.SIGKILL)


class Light:
    """A worker without a model, which is there in a second."""

    def __init__(self, versions):
        self.versions = versions

    def ready(self):
        return (), f"somewhere:{os.getpid()}", self.versions

    def work(self, function, shared, args):
        return function(None, *shared, *args)


class Starved:
    """A worker that dies of its model."""

    def ready(self):
        os.kill(os.getpid(), signal.SIGKILL)
