"""Conversations in the chat template of a model from elsewhere, here and in transformers: texts and token ids, as rows of a table.

The templates are those of `tests.support.foreign_templates`; a conversation has several turns, and tools, calls and reasoning where the
template has a form for them. Each is rendered as it is, and with the prompt for another answer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.support import foreign_templates as foreign
from tests.text.test_foreign_templates import DIALOGUES, dialogues, records
from tinyllm.text.chat import render_many
from tinyllm.text.tokenizer import Tokenizer

STYLE_OF = {  # architecture -> the template of its chat models
    "llama": "llama3",
    "mistral": "mistral",
    "qwen2": "qwen3",
    "qwen3": "qwen3",
    "smollm3": "smollm2",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "blocks",
    "gpt2": "blocks",
}


def differing(style: str) -> list[str]:
    """Return which of `2 * DIALOGUES` renderings have another text or other ids than in transformers: `3` whole, `3, as a prompt`."""
    with tempfile.TemporaryDirectory() as place:
        folder = foreign.saved(style, Path(place) / style)
        ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
        rows = dialogues(style)
        messages = [record.messages for record in records(rows, Path(place))]
    found = []
    for prompt in (False, True):
        for number, rendered in enumerate(render_many(ours, messages, generation_prompt=prompt)):
            options = {"tools": rows[number].get("tools"), "add_generation_prompt": prompt}
            text = theirs.apply_chat_template(rows[number]["messages"], tokenize=False, **options)
            ids = theirs.apply_chat_template(rows[number]["messages"], return_dict=False, **options)
            if (ours.decode(rendered.ids, skip_special=False), rendered.ids) != (text, ids):
                found.append(f"{number}{', as a prompt' * prompt}")
    return found


def table() -> int:
    """Print a line for every template and return how many renderings differ."""
    styles = {style: [kind for kind, one in STYLE_OF.items() if one == style] for style in foreign.STYLES}
    wrong = 0
    print(f"\n{'chat template':<32} {'tools':>9} {'reasoning':>9} {'equal text and ids':>20}")
    for style, kinds in styles.items():
        found = len(differing(style))
        wrong += found
        has = ["yes" if style in those else "as text" for those in (foreign.TOOLS, foreign.REASONING)]
        name = f"{style} ({', '.join(kinds)})" if kinds else style
        print(f"{name:<32} {has[0]:>9} {has[1]:>9} {2 * DIALOGUES - found:>9,} of {2 * DIALOGUES:,}", flush=True)
    return wrong
