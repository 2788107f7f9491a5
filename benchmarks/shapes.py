"""Random-weight models and prompts that the benchmarks run on."""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from cosmic_tl import ChatFormat, ContrastSet, load_model, load_prompts
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import demo_path

SHAPES: dict[str, PretrainedConfig] = {
    "small": Qwen2Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=2816,  # as wide for its model as in Qwen2 of 0.5 B
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.05,  # large enough that every block matters
    ),
    "tiny": LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
    ),
    "llama-8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
    "qwen-72b": Qwen2Config(
        vocab_size=152_064,
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
CHAT = ChatFormat(system="You are a helpful person . Please answer .")
"""With the role tokens, the first 20 tokens of every prompt."""
PREFIX = 20


@dataclass(frozen=True)
class Pair:
    """The same random weights twice: as a plain Hugging Face model, and as a bridge."""

    shape: str
    device: str = "cpu"
    precision: torch.dtype | None = None
    """Default float32 on a CPU, bfloat16 elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        return self.precision or (torch.float32 if self.device == "cpu" else torch.bfloat16)

    def _build(self, attention: str) -> PreTrainedModel:
        torch.manual_seed(0)
        with torch.device(self.device):
            config = SHAPES[self.shape]
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation=attention).eval()

    @cached_property
    def plain(self) -> PreTrainedModel:
        """With the attention that transformers picks by default."""
        return self._build("sdpa")

    @cached_property
    def bridge(self) -> TransformerBridge:
        with tempfile.TemporaryDirectory() as folder:
            SHAPES[self.shape].save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(demo_path())
            return load_model(
                folder, dtype=self.dtype, device=self.device, hf_model=self._build("eager"), tokenizer=tokenizer
            )


def prompts(model: TransformerBridge, n: int, seed: int = 0) -> ContrastSet:
    """`n` prompts per side and split, of 13 to 40 tokens after the shared prefix, 25 on average."""
    chance = random.Random(seed)
    demo = load_prompts("demo")
    words = {side: " ".join(demo.side(side, "train", 200)).split() for side in ("positive", "negative")}

    def some(side: str) -> list[str]:
        return [" ".join(chance.choices(words[side], k=chance.randint(6, 24))) for _ in range(n)]

    made = ContrastSet(
        "benchmark",
        *({split: tuple(some(side)) for split in ("train", "val")} for side in ("positive", "negative")),
    )
    rows = tokenize(model, made.side("positive", "val", n) + made.side("negative", "val", n), CHAT)
    assert len({tuple(row[:PREFIX]) for row in rows}) == 1 < len({tuple(row[: PREFIX + 1]) for row in rows})
    return made


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of a call."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def alternate(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    """Median of the ratios of two calls' times, made by turns so that the machine's moods hit both."""
    ours()
    theirs()
    return median(seconds(ours) / seconds(theirs) for _ in range(rounds))
