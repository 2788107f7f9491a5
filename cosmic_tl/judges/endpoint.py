"""A model behind an OpenAI-compatible chat endpoint as judge."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from socket import getaddrinfo
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.errors import CosmicError
from cosmic_tl.judges.base import Judgement
from cosmic_tl.judges.response_cache import ResponseCache
from cosmic_tl.judges.templates import JudgeTemplate, judge_with

if TYPE_CHECKING:
    import openai


_ATTEMPTS = 2
"""Maximum number of times that a question is asked if its answer cannot be parsed."""


@checked
@dataclass(frozen=True)
class EndpointJudge:
    """Judge with a remote model, by its answers to a template's question.

    Needs the `openai` package (`pip install 'cosmic_tl[judges]'`). It retries after a timeout, a lost connection, or
    status 408, 409, 429 or 5xx, with exponential backoff (half a second to eight), or after the time that the server's
    Retry-After gives, up to a minute. After a 429 requests are also spaced, each time twice as far, and closer again as
    they succeed.

    Example:
        >>> from cosmic_tl.judges.templates import STRONGREJECT
        >>> judge = EndpointJudge("some-model", STRONGREJECT, "http://127.0.0.1:8000/v1", api_key_env=None)
        >>> judge(["hello"], [""])[0].verdict  # nothing to ask about
        'neither'
    """

    model: str
    """The model's name at the endpoint."""
    template: JudgeTemplate
    """`STRONGREJECT`, `LLAMA_GUARD_3` (for a server that applies the guard's own chat template), or your own."""
    base_url: str | None = None
    """The endpoint up to and including `/v1`. None: the `openai` package's default."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key. It is read when the judge is called, and never stored. None: no key."""
    cache: str | Path | None = None
    """JSONL file of answers by a hash of address, model, messages and options. None: no cache."""
    concurrency: int = 8
    """Maximum number of concurrent requests."""
    requests_per_minute: float | None = None
    """Maximum number of requests per minute, including retries, evenly spaced. None: no limit."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    max_retries: int = 5
    """Maximum number of retries per request."""
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    """Further parameters of the request. `max_tokens` defaults to the template's, and is not sent if None."""

    @property
    def name(self) -> str:
        """What its verdicts depend on: endpoint, model, template and parameters.

        Example:
            >>> from cosmic_tl.judges.templates import STRONGREJECT
            >>> EndpointJudge("some-model", STRONGREJECT, "http://127.0.0.1:8000/v1").name.split(",")[0]
            'some-model at http://127.0.0.1:8000/v1'
        """
        return f"{self.model} at {self.base_url or 'the default endpoint'}, {self.template.label}, {dict(self.options)}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        """One judgement per completion, in order. Equal questions are asked once.

        If an answer cannot be parsed, the question is asked once more; then the verdict is "neither" with
        `parsed=False`.

        Raises:
            CosmicError: If the lists differ in length, an option is invalid, the package or the key is missing, a request
                finally fails, or no answer at all can be parsed. Answers received until then are in the cache.
        """
        self._check()
        found = judge_with(self.template, prompts, completions, self._ask)
        asked = [one for one in found if one.answer is not None or not one.parsed]
        if asked and not any(one.parsed for one in asked):
            said = next((repr(one.answer[:60]) for one in asked if one.answer), "nothing that is an answer")
            raise CosmicError(
                f"endpoint: none of {len(asked)} answers of {self.model!r} can be read (it said {said}); check that base_url "
                "ends in /v1, and that the model follows the template"
            )
        return found

    def _check(self) -> None:
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise CosmicError(f"{name}: must be at least {least}, found {getattr(self, name)}")
        for name, value in (("timeout", self.timeout), ("requests_per_minute", self.requests_per_minute)):
            if value is not None and not value > 0:
                raise CosmicError(f"{name}: must be positive, found {value}")
        if self.base_url is not None:
            _check_address(self.base_url)

    def _ask(self, pairs: list[tuple[str, str]]) -> list[str | None]:
        cache = ResponseCache(self.cache)
        options = {"max_tokens": self.template.max_new_tokens, **self.options}
        options = {name: value for name, value in options.items() if value is not None}
        questions: dict[tuple[str, str], dict[str, Any]] = {
            pair: {"model": self.model, "messages": self.template.messages(*pair), **options} for pair in pairs
        }
        found = {pair: cache.get(self._cached(question)) for pair, question in questions.items()}
        missing = [pair for pair, answer in found.items() if answer is None]
        if missing:
            with self._client() as client, track(len(missing), f"judging, {self.template.name}") as advance:
                pool = ThreadPoolExecutor(self.concurrency)
                try:
                    waiting = {pool.submit(self._answer, client, questions[pair], cache): pair for pair in missing}
                    for future in as_completed(waiting):
                        found[waiting[future]] = future.result()
                        advance(1)
                finally:
                    pool.shutdown(cancel_futures=True)
        return [found[pair] for pair in pairs]

    def _cached(self, question: dict[str, Any]) -> dict[str, Any]:
        """The cache key, which includes the address: two endpoints may use one name for different models."""
        return {**question, "base_url": self.base_url}

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise CosmicError(
                f"api_key_env: {self.api_key_env!r} is not set; export it, or pass api_key_env=None if none is needed"
            )
        return key

    def _client(self) -> "openai.OpenAI":
        try:
            import openai
        except ImportError as error:
            raise CosmicError("judge: an endpoint needs the openai package; pip install 'cosmic_tl[judges]'") from error
        pace = _Pace(self.requests_per_minute)
        return openai.OpenAI(
            api_key=self._key(),
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
            # A hook of the connection sees every request, retries included.
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [pace.wait], "response": [pace.learn]}),
        )

    def _answer(self, client: "openai.OpenAI", question: dict[str, Any], cache: ResponseCache) -> str | None:
        """The endpoint's answer, stored in the cache; None if the response cannot be parsed."""
        import openai

        answer: str | None = None
        for _ in range(_ATTEMPTS):
            try:
                response = client.chat.completions.create(**question)
            except openai.APIResponseValidationError:
                continue
            except openai.OpenAIError as error:
                # Not `from error`: an error's text may quote the key.
                raise CosmicError(self._complaint(error)) from None
            except ValueError:  # the body is not JSON
                continue
            if (text := _text(response)) is not None:
                answer = self._hide(text)
                if self.template.read(answer) is not None:
                    break
        if answer is not None:
            cache.add(self._cached(question), answer)
        return answer

    def _complaint(self, error: Exception) -> str:
        said = " ".join(self._hide(str(error)).split())[:300]
        where = _hidden(self.base_url or "the default address")
        retries = f" after {self.max_retries} retries" if _retried(error) else ""
        kept = "; the answers so far are in the cache" if self.cache is not None else ""
        return (
            f"endpoint: {self.model!r} at {where} failed{retries} ({said}); "
            f"check model, address and key, or call again later{kept}"
        )

    def _hide(self, text: str) -> str:
        return text if self.api_key_env is None else text.replace(self._key(), "***")


def _check_address(url: str) -> None:
    """Say at once what no retry would change: the address is none, or its host has no name that is known."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise CosmicError(f"base_url: {_hidden(url)!r} is no address; give one such as 'http://127.0.0.1:8000/v1'")
    if getproxies():
        return  # the proxy may know more names
    try:
        getaddrinfo(host, None)
    except OSError as error:
        raise CosmicError(
            f"base_url: there is no host {host!r} ({error.strerror or error}); check the address"
        ) from error


def _hidden(url: str) -> str:
    """An address without user and password.

    Example:
        >>> _hidden("http://me:secret@host/v1")
        'http://host/v1'
    """
    return re.sub(r"//[^/@]*@", "//", url)


def _retried(error: Exception) -> bool:
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 409, 429) or status >= 500


def _text(response: object) -> str | None:
    """The answer in a response, which may have an unexpected format."""
    try:
        text: object = response.choices[0].message.content  # type: ignore[attr-defined]
    except (AttributeError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


_FIRST, _LONGEST = 0.1, 10.0
"""Seconds between requests after the first 429, and at most."""


class _Pace:
    """Limits requests to even intervals, which grow when the server says that they are too many."""

    def __init__(self, per_minute: float | None) -> None:
        self._least = self._interval = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._lock = Lock()

    def learn(self, response: Any) -> None:  # of httpx, which the openai package brings
        with self._lock:
            if response.status_code == 429:
                self._interval = max(self._least, min(max(2 * self._interval, _FIRST), _LONGEST))
            elif response.is_success:
                slower = 0.8 * self._interval
                self._interval = self._least if slower < _FIRST else max(self._least, slower)

    def wait(self, request: object) -> None:
        with self._lock:
            mine = max(self._next, time.monotonic())
            self._next = mine + self._interval
        time.sleep(max(0.0, mine - time.monotonic()))
