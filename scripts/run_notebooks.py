"""Execute notebooks from a clean kernel, and write them back with small, repeatable outputs.

python scripts/run_notebooks.py notebooks/1-quickstart.ipynb

Without arguments all of them. Every figure is kept twice: as Plotly JSON, which Jupyter draws, and as a PNG for readers
that do not (GitHub, the documentation). The PNGs need kaleido and a Chromium.
"""

import argparse
import base64
import os
import sys
import tempfile
import time
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
MAX_SECONDS, MAX_BYTES, MAX_PNG_BYTES = 120, 500_000, 60_000
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, folder: Path) -> tuple[NotebookNode, float]:
    """The notebook as a clean kernel in `folder` leaves it, and the seconds that took; needs no browser.

    Seconds are those of the clock or, where they are fewer since the machine was busy with other things, of the processor.

    Raises:
        CellExecutionError: At the first error.
        CellTimeoutError: If a cell does not end.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=5 * MAX_SECONDS,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # which else warns of its own transport
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    before = _seconds()
    client.execute(env={**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"})
    took = min(now - then for now, then in zip(_seconds(), before, strict=True))
    return _tidy(notebook, folder), took


def _seconds() -> tuple[float, float]:
    """Of the clock, and of the processor in processes that were started here and have ended."""
    times = os.times()
    return time.perf_counter(), times.children_user + times.children_system


def _tidy(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Keep what readers look at and what the next execution gives again."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET not in output.get("data", ())
            ]
    for data in _bundles(notebook):
        if PLOTLY in data:
            figure = data[PLOTLY]
            figure.pop("config", None)
            data[PLOTLY] = _plain(figure)
    text = nbformat.writes(notebook).replace(f"{folder}{os.sep}", "")
    tidy: NotebookNode = nbformat.reads(text, as_version=4)
    return tidy


def _bundles(notebook: NotebookNode) -> list[NotebookNode]:
    """What each output shows, by MIME type."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [output.data for cell in cells for output in cell.outputs if "data" in output]


def _plain(value: Any) -> Any:
    """A figure's data with arrays as lists and numbers to five digits: it can be read and compared, and is smaller."""
    if isinstance(value, dict):
        if "bdata" in value:
            array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
            shape = [int(n) for n in str(value.get("shape", len(array))).split(",")]
            return _plain(array.reshape(shape).tolist())
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if isfinite(value) else None
    return value


def add_pictures(notebook: NotebookNode) -> int:
    """Put a PNG beside every figure; the size of the largest in bytes."""
    largest = 0
    for data in _bundles(notebook):
        if PLOTLY in data:
            picture = _small(go.Figure(data[PLOTLY]).to_image("png", scale=1.5))
            data["image/png"] = base64.b64encode(picture).decode()
            largest = max(largest, len(picture))
    return largest


def _small(png: bytes) -> bytes:
    """The picture with a palette of 256 colours, which looks the same and takes a quarter of the space."""
    palette = Image.open(BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
    palette.save(small := BytesIO(), "png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(NOTEBOOKS.glob("*.ipynb")))
    wrong = []
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            notebook, seconds = execute(path, Path(folder))
        largest = add_pictures(notebook)
        nbformat.write(notebook, path)
        size = path.stat().st_size
        print(f"{path.name}: {seconds:.0f} s, {size / 1000:.0f} kB, largest picture {largest / 1000:.0f} kB")
        if seconds > MAX_SECONDS or size > MAX_BYTES or largest > MAX_PNG_BYTES:
            wrong.append(path.name)
    if wrong:
        limits = f"{MAX_SECONDS} s, {MAX_BYTES / 1000:.0f} kB, a picture {MAX_PNG_BYTES / 1000:.0f} kB"
        sys.exit(f"over the limits ({limits}): {', '.join(wrong)}")


if __name__ == "__main__":
    main()
