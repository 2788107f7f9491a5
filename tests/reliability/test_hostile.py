"""Names and files that mean harm: text stays text, and no code runs."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cosmic_tl
from cosmic_tl import CosmicError, CosmicOptions, Run, RunSettings, load_model, load_prompts, run
from cosmic_tl.cli.output import print_result
from cosmic_tl.figures.text import as_text
from cosmic_tl.model.load import demo_path

PACKAGE = Path(cosmic_tl.__file__).parent
HOSTILE = "qwen[/b] [red]\x1b[2J\u202e"


def test_markup_and_control_characters_in_names_are_text(
    demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
    prompts = replace(load_prompts("demo"), labels=("harm[/b]ful", "[red]harmless"))
    done = run(demo, prompts, tmp_path / "run", RunSettings(options, n_test=1, max_new_tokens=2, n_placebos=1))
    print_result(replace(done, summary={**done.summary, "model": HOSTILE}))
    said = capsys.readouterr().out
    assert "qwen[/b] [red]\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}" in said
    assert "harm[/b]ful" in said and "[red]harmless" in said and "\x1b[2J" not in said
    assert Run.load(tmp_path / "run").prompts.labels == ("harm[/b]ful", "[red]harmless")
    assert "harm[/b]ful" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_figures_show_quotes_and_tags_as_they_are() -> None:
    assert as_text('"it\'s" <b>&\u202e') == '"it\'s" &lt;b&gt;&amp;\N{REPLACEMENT CHARACTER}'


def test_code_that_comes_with_a_model_does_not_run_unasked(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(demo_path(), folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    kinds = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.A", "evil.B"]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": kinds}))
    with pytest.raises(CosmicError, match="could not load"):
        load_model(folder, device="cpu")
    assert not mark.exists()


def test_nothing_is_unpickled_and_no_text_is_run() -> None:
    """But for the types in this package's own signatures, and tensors in other tools' files, which torch reads without code."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {name.name.partition(".")[0] for name in node.names} | {
                    (getattr(node, "module", "") or "").partition(".")[0]
                }
                found += [
                    f"{path.name}: {name}" for name in names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
                ]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}.get(called)
                if safe is not None and safe in [f"{one.arg}={ast.unparse(one.value)}" for one in node.keywords]:
                    continue
                if called in ("eval", "exec", "torch.load", "np.load", "os.system") or called.endswith("read_pickle"):
                    found.append(f"{path.name}: {called}")
    assert found == ["border.py: eval"]
