"""`tinyllm chat`: talk to a checkpoint. A model without chat tokens, or one that was only pretrained, continues text instead."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from tinyllm.errors import UserError
from tinyllm.model import hub
from tinyllm.model.generate import Sampling, steps
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.common import Call, begin, tokenizer_of
from tinyllm.stages.config import ChatConfig
from tinyllm.stages.parents import PRETRAIN, find
from tinyllm.text import chat
from tinyllm.text.tokenizer import StreamDecoder, Tokenizer
from tinyllm.train.progress import say

_HELP = """/help     this
/system X set the system message and start over
/undo     take the last exchange back
/retry    answer the last message again
/clear    start over
/quit     leave (also Ctrl-D); Ctrl-C stops an answer"""


class Talk:
    """One conversation with one model."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, config: ChatConfig, *, base_model: bool):
        self.model, self.tokenizer, self.config, self.base_model = model, tokenizer, config, base_model
        self.messages: list[chat.Message] = []
        self.answers = 0
        self.finished = False  # whether the last answer ended by itself
        self.restart(config.system)

    def restart(self, system: str) -> None:
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def prompt(self) -> list[int]:
        """The ids to continue. The oldest exchanges are dropped, aloud, when the context is full."""
        room = self.model.config.max_position_embeddings - min(
            self.config.max_new_tokens, self.model.config.max_position_embeddings // 2
        )
        if self.base_model:
            start = self.tokenizer.endoftext if self.tokenizer.bos is None else self.tokenizer.bos
            return [start, *self.tokenizer.encode(self.messages[-1]["content"])][-room:]
        while len(ids := chat.render(self.tokenizer, self.messages, generation_prompt=True).ids) > room:
            first = 1 if self.messages[0]["role"] == "system" else 0
            if len(self.messages) - first <= 1:
                raise UserError(
                    f"the message has {len(ids)} tokens; there is room for {room}", where="chat", fix="shorten it"
                )
            del self.messages[first : first + 2]
            say("(the oldest exchange was dropped: the context is full)")
        return ids

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer as they are written; the exchange is kept when it is complete or interrupted."""
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except UserError:
            self.messages.pop()
            raise
        config = self.config
        sampling = Sampling(
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            stop=self.tokenizer.stop_ids,
            seed=config.seed + self.answers,
        )
        self.answers += 1
        decoder, written, self.finished = StreamDecoder(self.tokenizer), "", False
        try:
            for _, tokens, _ in steps(self.model, [ids], sampling):
                self.finished = tokens[0] in sampling.stop
                if not self.finished:
                    written += (piece := decoder.push(tokens[0]))
                    yield piece
            written += (piece := decoder.flush())
            yield piece
        finally:
            self.messages.append({"role": "assistant", "content": written})

    def take_back(self) -> str | None:
        """Remove the last exchange; returns what the user had said."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            return None
        self.messages.pop()
        return self.messages.pop()["content"]


def run(config: ChatConfig, call: Call, prompts: Sequence[str] = (), *, stream: bool = True) -> dict[str, Any]:
    """Answer `prompts` one after another in one conversation (printing the answers if `stream`), or, without any, talk."""
    started = time.monotonic()
    device = begin(config)
    parent = find("chat", config.parent, fast=call.fast)
    model = hub.load_causal_lm(parent.folder, device)
    tokenizer = tokenizer_of(model, parent.folder)
    parent.unchanged()
    only_pretrained = f"/{PRETRAIN}/" in f"/{parent.folder.as_posix()}"
    talk = Talk(model, tokenizer, config, base_model=only_pretrained or not tokenizer.has_chat_tokens)
    mode = "a base model: it continues your text" if talk.base_model else "chat"
    say(f"{parent.folder} ({mode})")
    exchanges = []
    if prompts:
        for prompt in prompts:
            pieces = []
            for piece in talk.answer(prompt):
                pieces.append(piece)
                if stream:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            if stream:
                sys.stdout.write("\n")
            exchanges.append({"prompt": prompt, "answer": "".join(pieces), "finished": talk.finished})
    else:
        _converse(talk)
    return {
        "schema_version": 1,
        "stage": "chat",
        "checkpoint": parent.folder.as_posix(),
        "seconds": round(time.monotonic() - started, 2),
        "exchanges": exchanges,
    }


def _converse(talk: Talk) -> None:
    """Read a line, write an answer, until the user leaves."""
    if find_spec("readline"):  # history and editing, where the platform has it
        import readline  # noqa: F401
    say("/help lists the commands")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if line in ("/quit", "/exit"):
            return
        text = _command(talk, line) if line.startswith("/") else line
        if text:
            _write_answer(talk, text)


def _command(talk: Talk, line: str) -> str | None:
    """Carry out a slash command; returns text to be answered, if the command asks for that."""
    word, _, rest = line.partition(" ")
    if word == "/help":
        say(_HELP)
    elif word == "/clear":
        talk.restart(talk.system)
    elif word == "/system":
        talk.restart(rest.strip())
    elif word == "/undo":
        say("taken back" if talk.take_back() is not None else "nothing to take back")
    elif word == "/retry":
        return talk.take_back()
    else:
        say(f"no command {word}; /help lists them")
    return None


def _write_answer(talk: Talk, text: str) -> None:
    pieces = talk.answer(text)
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # what was written stays in the conversation
    except UserError as error:
        say(str(error))
    sys.stdout.write("\n")
