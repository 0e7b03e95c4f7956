"""`tinyllm chat`: talk to a checkpoint. A base model, or one without chat tokens, continues text instead."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyllm import signals
from tinyllm.config import load
from tinyllm.console import say
from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.model.decoding import Sampling, stream
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.common import load_language_model, set_up
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.origin import is_chat_model
from tinyllm.stages.parents import find_checkpoint
from tinyllm.text import chat
from tinyllm.text.chat_format import choose
from tinyllm.text.streaming import StreamDecoder
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

_HELP = """/help     list the commands
/system X set the system message and start over
/undo     remove the last exchange
/retry    answer the last message again
/clear    start over
/quit     leave (also Ctrl-D); Ctrl-C stops an answer"""


_DEFAULTS = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "repetition_penalty": 1.0}


def with_own_sampling(config: ChatConfig, folder: Path) -> tuple[ChatConfig, str]:
    """Return a configuration with the sampling of a checkpoint's generation_config.json where none is set, and a line that says so."""
    path = folder / "generation_config.json"
    own = untrusted_files.read_json(path) if path.is_file() else {}
    found: dict[str, Any] = {}
    for key in _DEFAULTS:
        value = own.get(key)
        if vars(config)[key] is None and isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = int(value) if key == "top_k" else float(value)
    if own.get("do_sample") is False and config.temperature is None:
        found = {key: value for key, value in found.items() if key == "repetition_penalty"} | {"temperature": 0.0}
    checked = load(ChatConfig, overrides=[(key, repr(value), str(path)) for key, value in found.items()]).config
    line = ", ".join(f"{key} {value:g}" for key, value in found.items())
    update = {key: vars(checked)[key] for key in found}
    return config.model_copy(update=update), f"sampling as generation_config.json says: {line}" if line else ""


class ChatSession:
    """One conversation with one model.

    Args:
        base_model: continue the user's text instead of answering through the chat template.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, config: ChatConfig, *, base_model: bool):
        self.model, self.tokenizer, self.config, self.base_model = model, tokenizer, config, base_model
        self.messages: list[chat.Message] = []
        self.answers = 0
        self.finished = False  # the last answer ended with a stop token
        self.restart(config.chat.system or config.system)

    def restart(self, system: str) -> None:
        """Start a new conversation with this system message, which may be empty."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def prompt(self) -> list[int]:
        """Return the token ids to continue. The oldest exchanges are dropped and reported when the context is full.

        Raises: UserError (USAGE) if the last message alone is too long.
        """
        room = self.model.config.max_position_embeddings - min(
            self.config.max_new_tokens, self.model.config.max_position_embeddings // 2
        )
        if self.base_model:
            return [self.tokenizer.document_start, *self.tokenizer.encode(self.messages[-1]["content"])][-room:]
        while len(ids := chat.render(self.tokenizer, self.messages, generation_prompt=True).ids) > room:
            first = 1 if self.messages[0]["role"] == "system" else 0
            if len(self.messages) - first <= 1:
                raise UserError(
                    f"the message has {len(ids)} tokens; the limit is {room}", where="chat", fix="shorten it"
                )
            del self.messages[first : first + 2]
            say("(the oldest exchange was dropped: the context is full)")
        return ids

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece. The exchange is kept, complete or interrupted."""
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except UserError:
            self.messages.pop()
            raise
        options: dict[str, Any] = _DEFAULTS | {
            key: vars(self.config)[key] for key in _DEFAULTS if vars(self.config)[key] is not None
        }
        stop, seed = self.tokenizer.stop_ids, self.config.seed + self.answers
        sampling = Sampling(self.config.max_new_tokens, stop=stop, seed=seed, **options)
        self.answers += 1
        decoder, written, self.finished = StreamDecoder(self.tokenizer), "", False
        try:
            for token in stream(self.model, ids, sampling):
                self.finished = token in sampling.stop
                if not self.finished:
                    written += (piece := decoder.push(token))
                    yield piece
            written += (piece := decoder.flush())
            yield piece
        finally:
            self.messages.append({"role": "assistant", "content": written})

    def undo(self) -> str | None:
        """Remove the last exchange and return the user's message; None if there is none."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            return None
        self.messages.pop()
        return self.messages.pop()["content"]


def run(
    config: ChatConfig, invocation: Invocation, prompts: Sequence[str] = (), *, stream: bool = True
) -> dict[str, Any]:
    """Answer `prompts` in turn in one conversation, printing the answers if `stream`; without prompts, chat interactively."""
    started = time.monotonic()
    device = set_up(config)
    parent = find_checkpoint("chat", config.parent, fast=invocation.fast, base=config.base)
    model, tokenizer = load_language_model(parent, device)
    config, sampling = with_own_sampling(config, parent.folder)
    if sampling:
        say(sampling)
    system = config.chat.system or config.system
    chosen = choose(config.chat.model_copy(update={"system": system}), tokenizer, trains=False)
    tokenizer = chosen.tokenizer
    if chosen.line:
        say(chosen.line)
    session = ChatSession(model, tokenizer, config, base_model=not is_chat_model(parent.folder, tokenizer))
    mode = "a base model: it continues your text" if session.base_model else "chat"
    say(f"{parent.folder} ({mode})")
    exchanges = []
    if prompts:
        for prompt in prompts:
            pieces = []
            for piece in session.answer(prompt):
                pieces.append(piece)
                if stream:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            if stream:
                sys.stdout.write("\n")
            exchanges.append({"prompt": prompt, "answer": "".join(pieces), "finished": session.finished})
    else:
        _converse(session)
    return {
        "schema_version": 1,
        "stage": "chat",
        "checkpoint": parent.folder.as_posix(),
        "seconds": round(time.monotonic() - started, 2),
        "exchanges": exchanges,
    }


def _converse(session: ChatSession) -> None:
    """Read messages and print answers until the user leaves."""
    if find_spec("readline"):  # history and editing, where the platform has it
        import readline  # noqa: F401
    say("/help lists the commands")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").rstrip()
        except EOFError:
            say("")
            return
        except signals.Stop:
            say("")  # the line after the prompt
            raise
        if line.strip() in ("/quit", "/exit"):
            return
        text = _command(session, line.strip()) if line.lstrip().startswith("/") else line
        if text:
            _write_answer(session, text)


def _command(session: ChatSession, line: str) -> str | None:
    """Run a slash command. Returns a message to be answered, if the command results in one."""
    word, _, rest = line.partition(" ")
    if word == "/help":
        say(_HELP)
    elif word == "/clear":
        session.restart(session.system)
    elif word == "/system":
        session.restart(rest.strip())
    elif word == "/undo":
        say("removed the last exchange" if session.undo() is not None else "there is no exchange to remove")
    elif word == "/retry":
        return session.undo()
    else:
        say(f"unknown command {word}; /help lists the commands")
    return None


def _write_answer(session: ChatSession, text: str) -> None:
    pieces = session.answer(text)
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except signals.Stop as stop:
        if stop.number != signal.SIGINT or not sys.stdin.isatty():
            raise
        signals.forget()
        pieces.close()  # what has been written stays in the conversation
    except UserError as error:
        say(str(error))
    sys.stdout.write("\n")
