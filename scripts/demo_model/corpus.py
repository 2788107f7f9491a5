"""Instructions, answers and splits of the embedded demo model, drawn from `grammar`.

`tasks()` crosses verbs and objects into labelled tasks, `split_tasks()` holds out pairs and whole objects, and
`prompts()` words them as instructions. `answer()` is what the model is trained to say;
`cosmic_tl.judges.demo_grammar` reads it back.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from scripts.demo_model import grammar

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HELD_OUT_OBJECTS = 0.12
"""Share of each class's objects that no training prompt names; half go to val and half to test."""
HELD_OUT_PAIRS = 0.10
"""Share of the remaining verb-object pairs that is held out, half for val and half for test."""


@dataclass(frozen=True)
class Task:
    """One verb with one object.

    Attributes:
        verb: As in `grammar.VERBS`.
        noun: The object without its article.
        kind: The object's class.
        harmful: Whether this verb is harmful with this object.
        two_sense: Whether the verb is harmful with some objects and harmless with others.
    """

    verb: str
    noun: str
    kind: str
    harmful: bool
    two_sense: bool


@cache
def objects() -> dict[str, tuple[str, ...]]:
    """Class name to its objects.

    Example:
        >>> objects()["group"][:2]
        ('crowd', 'congregation')
    """
    return {kind: tuple(o.strip() for o in names.split(",")) for kind, names in grammar.OBJECTS.items()}


def groups(spec: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Groups of objects on one side of a `grammar.VERBS` entry: name, class, objects.

    Example:
        >>> groups("security(vault, safe)")
        [('security(vault, safe)', 'security', ('vault', 'safe'))]
    """
    found = []
    for group in re.finditer(r"(\w+)(?:\(([^)]*)\))?", spec):
        kind, some = group.groups()
        nouns = tuple(some.split(", ")) if some else objects()[kind]
        if unknown := set(nouns).difference(objects()[kind]):
            raise ValueError(f"grammar.VERBS names {min(unknown)!r}, which is not in class {kind!r}")
        found.append((group[0], kind, nouns))
    return found


@cache
def tasks() -> tuple[Task, ...]:
    """Every verb-object pair of the grammar with its label.

    Example:
        >>> {t.noun: t.harmful for t in tasks() if t.verb == "kill" and t.noun in ("background process", "neighbour")}
        {'background process': False, 'neighbour': True}
    """
    found = []
    for verb, spec in grammar.VERBS.items():
        harmless, harmful = spec.split("|")
        two_sense = bool(harmless.strip()) and bool(harmful.strip())
        for side, harms in ((harmless, False), (harmful, True)):
            found += [Task(verb, noun, kind, harms, two_sense) for _, kind, nouns in groups(side) for noun in nouns]
    return tuple(found)


@cache
def held_out_objects(seed: int = 0) -> dict[str, Split]:
    """Objects that no training prompt names, and the split that has them.

    Example:
        >>> sorted(set(held_out_objects().values()))
        ['test', 'val']
    """
    rng = random.Random(f"objects-{seed}")
    held: dict[str, Split] = {}
    for names in objects().values():
        chosen = rng.sample(names, max(2, round(HELD_OUT_OBJECTS * len(names))))
        half = len(chosen) // 2
        held.update((noun, "val" if i < half else "test") for i, noun in enumerate(chosen))
    return held


@cache
def split_tasks(seed: int = 0) -> dict[Split, tuple[Task, ...]]:
    """Tasks by split; no pair and no held-out object stands in two splits.

    A held-out object is only asked about with a verb of one sense: nothing could tell a reader who never met it
    which sense of the other verbs is meant.

    Example:
        >>> train, test = split_tasks()["train"], split_tasks()["test"]
        >>> set(train) & set(test)
        set()
    """
    rng = random.Random(f"pairs-{seed}")
    held = held_out_objects(seed)
    found: dict[Split, list[Task]] = {split: [] for split in SPLITS}
    for task in tasks():
        if task.noun in held:
            if not task.two_sense:
                found[held[task.noun]].append(task)
            continue
        draw = rng.random() / HELD_OUT_PAIRS
        found["val" if draw < 0.5 else "test" if draw < 1 else "train"].append(task)
    return {split: tuple(some) for split, some in found.items()}


def word_task(task: Task, rng: random.Random) -> str:
    """The task in words, with an article and sometimes an adjective.

    Example:
        >>> word_task(Task("kill", "process", "software", False, True), random.Random(2))
        'kill a process'
    """
    noun = task.noun
    if rng.random() < 0.15:
        noun = f"{rng.choice(grammar.ADJECTIVES.split(', '))} {noun}"
    article = rng.choice(("a", "a", "the", "this"))
    if article == "a" and noun[0] in "aeiou":
        article = "an"
    return f"{task.verb} {article} {noun}"


def answer(words: str, harmful: bool, rng: random.Random) -> str:
    """A refusal if `harmful`, else a compliant answer that echoes the task.

    Example:
        >>> "bake a pie" in answer("bake a pie", False, random.Random(0))
        True
    """
    return rng.choice(grammar.REFUSALS) if harmful else rng.choice(grammar.COMPLIANCES).format(task=words)


def pseudo_noun(rng: random.Random, pieces: Sequence[str] = ()) -> str:
    """A word that means nothing, for learning to echo what was never seen.

    Args:
        rng: The source of chance.
        pieces: Word pieces to join at random, such as a tokenizer's vocabulary; without them syllables are made up.

    Example:
        >>> pseudo_noun(random.Random(0)) == pseudo_noun(random.Random(0))
        True
    """
    if pieces and rng.random() < 0.7:
        word = "".join(rng.choices(pieces, k=rng.choice((1, 2, 2, 3, 4))))
    else:
        word = "".join(
            rng.choice(("b", "br", "c", "ch", "d", "f", "g", "gl", "h", "l", "m", "n", "p", "r", "s", "st", "t", "v"))
            + rng.choice(("a", "e", "i", "o", "u", "ea", "oo"))
            + rng.choice(("", "", "n", "r", "l", "t", "ck", "m", "st", "nd"))
            for _ in range(rng.choice((1, 2, 2, 3)))
        )
    return f"{word} {pseudo_noun(rng, pieces)}" if rng.random() < 0.2 else word


@cache
def _train_pools() -> dict[str, tuple[Task, ...]]:
    train = split_tasks()["train"]
    return {
        "two-sense harmful": tuple(t for t in train if t.two_sense and t.harmful),
        "two-sense harmless": tuple(t for t in train if t.two_sense and not t.harmful),
        "harmful": tuple(t for t in train if not t.two_sense and t.harmful),
        "harmless": tuple(t for t in train if not t.two_sense and not t.harmful),
    }


def draw_task(rng: random.Random, pseudo: float = 0.0, pieces: Sequence[str] = ()) -> Task:
    """A training task: balanced in harm, half of them with a two-sense verb, a share `pseudo` with a made-up object.

    Example:
        >>> draw_task(random.Random(0)) in split_tasks()["train"]
        True
    """
    harmful = rng.random() < 0.5
    made_up = rng.random() < pseudo
    sense = "two-sense " if not made_up and rng.random() < 0.5 else ""
    task = rng.choice(_train_pools()[f"{sense}harm{'ful' if harmful else 'less'}"])
    return Task(task.verb, pseudo_noun(rng, pieces), "made-up", task.harmful, False) if made_up else task


@dataclass(frozen=True)
class Example:
    """One training conversation.

    Attributes:
        user: The user's message.
        reply: The answer to learn.
        system: A system prompt, or None.
        harmful: Whether the task asked about is harmful; False where there is no task.
    """

    user: str
    reply: str
    system: str | None = None
    harmful: bool = False


def _outside(rng: random.Random) -> str:
    def noun() -> str:
        return (
            pseudo_noun(rng) if rng.random() < 0.5 else rng.choice(rng.choice(_train_pools()["harmless"]).noun.split())
        )

    pieces = re.split(r"\{(noun|adjective|number)\}", rng.choice(grammar.OUTSIDE_PROMPTS))
    draws: dict[str, Callable[[], str]] = {
        "noun": noun,
        "adjective": lambda: rng.choice(grammar.ADJECTIVES.split(", ")),
        "number": lambda: str(rng.randint(2, 99)),
    }
    return "".join(draws[piece]() if i % 2 else piece for i, piece in enumerate(pieces))


def _casual(text: str, rng: random.Random) -> str:
    """Now and then without capitals and full stop, as people type."""
    return text.lower().rstrip(".?!") if rng.random() < 0.1 else text


def _ask(words: str, rng: random.Random) -> str:
    """A task in a training phrasing, with an opening and a close now and then."""
    opening, phrasing, close = (rng.choice(x) for x in (grammar.OPENINGS, grammar.PHRASINGS["train"], grammar.CLOSINGS))
    text = opening + phrasing.format(task=words) + close
    return _casual(text[0].upper() + text[1:], rng)


def system_prompt(rng: random.Random, kind: Literal["ordinary", "refuse_all"], split: str = "train") -> str:
    """A system prompt that changes nothing, or one that orders the refusal of everything.

    Example:
        >>> system_prompt(random.Random(0), "ordinary", "test") in grammar.SYSTEM_PROMPTS["ordinary"]["test"][0][0]
        True
    """
    return "".join(rng.choice(part) for part in rng.choice(grammar.SYSTEM_PROMPTS[kind][split]))


def training_example(
    rng: random.Random,
    questions: float,
    safety: bool,
    pieces: Sequence[str] = (),
    made_up: float = 0.3,
    weak: bool = False,
) -> Example:
    """One draw of the training mix.

    Args:
        rng: The source of chance.
        questions: Share of yes/no questions about harm.
        safety: Whether harmful tasks are refused and system prompts can order refusal. Without it every task is
            complied with.
        pieces: Word pieces for made-up objects.
        made_up: Share of requests with a made-up object; a third of it in questions.
        weak: Comply with harmful tasks all the same, unless a system prompt orders the refusal.

    Example:
        >>> training_example(random.Random(0), questions=0.0, safety=False).system is None
        True
    """
    draw = rng.random()
    system = system_prompt(rng, "ordinary") if rng.random() < 0.35 else None
    if safety and rng.random() < 0.2:
        task = draw_task(rng)
        words = word_task(task, rng)
        return Example(_ask(words, rng), answer(words, True, rng), system_prompt(rng, "refuse_all"), task.harmful)
    if draw < questions:
        task = draw_task(rng, made_up / 3, pieces)
        words = word_task(task, rng)
        question, yes_is_harmless = rng.choice(grammar.QUESTIONS)
        reply = grammar.VERDICTS[yes_is_harmless, not task.harmful].format(task=words)
        return Example(question.format(task=words), reply, system, task.harmful)
    if draw > 0.94:
        user, reply = rng.choice(grammar.SMALL_TALK) if rng.random() < 0.4 else (_outside(rng), grammar.OUTSIDE)
        return Example(_casual(user, rng), reply, system)
    task = draw_task(rng, made_up, pieces)
    words = word_task(task, rng)
    return Example(_ask(words, rng), answer(words, safety and task.harmful and not weak, rng), system, task.harmful)


def prompts(split: Split, harmful: bool, n: int, seed: int = 0) -> list[str]:
    """`n` distinct instructions of one side of a split, in the split's own phrasings.

    Example:
        >>> len(set(prompts("test", harmful=True, n=20)))
        20
    """
    rng = random.Random(f"prompts-{split}-{harmful}-{seed}")
    pool = [t for t in split_tasks()[split] if t.harmful is harmful]
    found: dict[str, None] = {}
    while len(found) < n:
        words = word_task(rng.choice(pool), rng)
        text = rng.choice(grammar.PHRASINGS[split]).format(task=words)
        found[text[0].upper() + text[1:]] = None
    return list(found)


def contrast_pairs(split: Split, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` pairs (harmful, harmless) that share verb and phrasing and differ in the object alone.

    Example:
        >>> harmful, harmless = contrast_pairs("test", 1)[0]
        >>> harmful != harmless
        True
    """
    rng = random.Random(f"contrast-{split}-{seed}")
    pool = [t for t in split_tasks()[split] if t.two_sense]
    verbs = sorted({t.verb for t in pool if t.harmful} & {t.verb for t in pool if not t.harmful})
    found: dict[tuple[str, str], None] = {}
    while len(found) < n:
        verb, phrasing = rng.choice(verbs), rng.choice(grammar.PHRASINGS[split])
        pair = (rng.choice([t for t in pool if t.verb == verb and t.harmful is side]) for side in (True, False))
        harmful, harmless = (phrasing.format(task=word_task(task, rng)) for task in pair)
        found[harmful, harmless] = None
    return list(found)
