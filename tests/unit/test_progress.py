"""Progress shows where somebody watches: in a terminal or a running notebook kernel."""

import ipykernel
from jupyter_client.manager import run_kernel

from cosmic_tl._util.progress import in_notebook, track

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
