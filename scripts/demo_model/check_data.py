"""Write `cosmic_tl/demo/grammar.json`, what `cosmic_tl.judges.demo_grammar` needs to know of the grammar.

python -m scripts.demo_model.check_data  # after a change of the grammar; training does it as well
"""

import json
from pathlib import Path

from scripts.demo_model import corpus, grammar

PACKAGE = Path(__file__).resolve().parents[2] / "cosmic_tl" / "demo"


def check_data() -> dict:
    """Answers by kind, with `{task}` where they echo it, groups of nouns, and verbs with the groups that they go with."""
    answers = {
        "comply": grammar.COMPLIANCES,
        "refuse": grammar.REFUSALS,
        "verdict": list(grammar.VERDICTS.values()),
        "talk": list(dict.fromkeys([*(reply for _, reply in grammar.SMALL_TALK), grammar.OUTSIDE])),
    }
    nouns: dict[str, list[str]] = {}
    verbs: dict[str, dict[str, list[str]]] = {}
    for verb, spec in grammar.VERBS.items():
        verbs[verb] = {}
        for side, text in zip(("harmless", "harmful"), spec.split("|"), strict=True):
            groups = corpus.groups(text)
            verbs[verb][side] = [name for name, _, _ in groups]
            nouns |= {name: list(some) for name, _, some in groups}
    return {"answers": answers, "nouns": nouns, "verbs": verbs}


def write_check_data(path: Path) -> None:
    """Write them as JSON, with one line for each kind of answer, group and verb."""
    parts = []
    for name, entries in check_data().items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    write_check_data(PACKAGE / "grammar.json")
