"""Lines that a stage prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.cli.printing import results
from tinyllm.errors import UserError
from tinyllm.text.chat import render
from tinyllm.text.tokenizer import Tokenizer


@pytest.mark.parametrize("chat", [True, False])
def test_the_next_commands_are_named_also_without_chat_tokens(
    chat: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = without_chat_tokens(tmp_path / "plain")
    (tokenizer.with_chat_tokens() if chat else tokenizer).save(tmp_path / "saved", model_max_length=64)
    moved = {"what": "loss", "from": 2.0, "to": 1.0}
    found = {"stage": "pretrain", "moved": moved, "seconds": 1.0, "checkpoint": str(tmp_path / "saved")}
    results.result(found, as_json=False)
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if "next:" in line]
    assert said == ["next: tinyllm eval", "next: tinyllm sft"]  # which adds them
    if not chat:
        with pytest.raises(UserError, match="no chat tokens") as caught:
            render(tokenizer, [{"role": "user", "content": "Hi"}])
        assert "tinyllm sft" in caught.value.fix
        assert "with_chat_tokens" not in caught.value.fix


def without_chat_tokens(folder: Path) -> Tokenizer:
    """Return a vocabulary over all bytes as another library writes it."""
    from tokenizers import Tokenizer as Vocabulary
    from tokenizers import decoders, models, pre_tokenizers

    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = Vocabulary(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    vocabulary.add_special_tokens(["<|endoftext|>"])
    vocabulary.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)
