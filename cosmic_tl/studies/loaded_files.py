"""Which files a model would be loaded from."""

from pathlib import Path

from cosmic_tl.model.load import demo_path
from cosmic_tl.model.paths import DEMOS
from cosmic_tl.runs.derived import digest


def model_files(model: str, revision: str | None = None) -> str:
    """Identifies the files that a model would be loaded from now, without reading them: their names, sizes and times, or the
    commit of the copy from the hub. "" if none are here.

    Args:
        model: A name, directory, file or hub id.
        revision: On the hub. Defaults to the newest that is here.

    Example:
        >>> model_files("demo") == model_files("demo"), model_files("demo") == model_files("demo-weak")
        (True, False)
        >>> model_files("nobody/has-this-model")
        ''
    """
    path = demo_path(model) if model in DEMOS else Path(model)
    if path.is_file():
        return digest(_about(path))
    if path.is_dir():
        return digest(sorted(_about(one) for one in path.iterdir() if one.is_file()))
    from transformers.utils import cached_file

    try:
        cached = cached_file(model, "config.json", revision=revision or "main", local_files_only=True)
    except OSError:
        return ""
    return "" if cached is None else Path(cached).parent.name


def _about(path: Path) -> list[str | int]:
    about = path.stat()
    return [path.name, about.st_size, about.st_mtime_ns]
