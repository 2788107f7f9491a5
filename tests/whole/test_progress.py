"""Progress shows where somebody watches: in a terminal or a running notebook kernel."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import ipykernel
from jupyter_client.manager import run_kernel

from cosmic_tl._util.progress import in_notebook, stage, stages, track

BAR = "from cosmic_tl._util.progress import track\nwith track(2, 'two batches') as advance: advance(2)"


def test_an_imported_kernel_package_is_no_notebook(capsys):
    """Any library may import it."""
    assert ipykernel.__version__ and not in_notebook()
    with track(2, "two batches") as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_running_kernel_shows_progress():
    said = []
    with run_kernel(kernel_name="python3") as client:
        client.execute_interactive(BAR, timeout=60, output_hook=said.append)
    assert not [message for message in said if message["msg_type"] == "error"]
    assert "two batches" in str([message["content"] for message in said])


def test_a_notebook_says_the_stage_on_the_bar():
    """It has no lines for stages alone."""
    said = []
    code = BAR.replace("import track", "import stage, stages, track").replace(
        "with track", "with stages('a', 'b'):\n  stage('b')\n  with track"
    )
    with run_kernel(kernel_name="python3") as client:
        client.execute_interactive(code, timeout=60, output_hook=said.append)
    assert not [message for message in said if message["msg_type"] == "error"]
    assert "[2/2] b, two batches" in str([message["content"] for message in said])


def in_terminal(code):
    """What a program says on standard error when that is a terminal."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # without a width there is no bar
    done = subprocess.Popen([sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE)
    os.close(writer)
    text = b""
    while True:
        try:
            found = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not found:
            break
        text += found
    os.close(reader)
    assert done.wait() == 0 and done.stdout.read() == b"", text
    return text.decode()


def test_a_terminal_says_which_stage_of_how_many_runs():
    code = """
import time
from cosmic_tl._util.progress import each, stage, stages, track
with stages("loading", "scores", "report"):
    stage("loading")
    with stages("scores", "report"):  # a part of those outside
        stage("scores"); stage("scores"); stage("nothing that was said")
        with track(4, "removal") as advance:
            time.sleep(.2)  # a bar is not drawn again at once
            advance(1)
        for letter in each("ab", "letters"): time.sleep(.2)
        stage("report")
try:
    with stages("first", "second"):
        raise ValueError
except ValueError:
    pass
with stages("another"):
    stage("another")
    stage("first")
stage("another")
"""
    text = in_terminal(code)
    said = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip().startswith("[")]
    assert said == ["[1/3] loading", "[2/3] scores", "[3/3] report", "[1/1] another"]
    assert (
        "removal: " in text
        and "1 of 4, 00:0" in text
        and "so far, about " in text
        and "letters: " in text
        and "1 of 2" in text
    )


def test_nothing_is_said_where_nobody_looks(capsys):
    with stages("a", "b"):
        stage("a")
        with track(2, "two batches") as advance:
            advance(2)
    assert capsys.readouterr() == ("", "")
