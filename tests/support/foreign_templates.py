"""Chat templates in the styles of models in use, written for these tests, and random dialogues for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tinyllm.text.tokenizer import Tokenizer

# A default system prompt, and a head and an end for every turn.
SMOLLM2 = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
You are small.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Tools in the first user turn, the date in a system turn that is always there, calls as an object without content.
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set opening = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today is " + date_string + "\\n\\n" + opening + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if not messages %}{{- raise_exception("no first user message for the tools") }}{%- endif %}
    {%- set asked = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nCall one of these functions:\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + "\\n\\n" }}{%- endfor %}
    {{- asked + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}" + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# Reasoning of earlier exchanges is dropped, and the last answer has an empty one.
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" + (tool | tojson) }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string
           and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# Roles must alternate; the system prompt goes into the last user turn's brackets.
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set opening = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("after the optional system message, roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and opening is defined %}
            {{- "[INST] " + opening + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# The assistant is called model, and there is no system turn.
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model
' }}{% endif %}"""

# The token of a turn is put together from the role; the text ends with the end of a document unless an answer is asked for.
PHI3 = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}\
{{ '<|system|>
' + message['content'] + '<|end|>
' }}{% elif message['role'] != 'system' %}{{ '<|' + message['role'] + '|>' + '
' + message['content'] + '<|end|>
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

# A system turn by default, tools in a turn of their own, and parts of type text.
GRANITE = """\
{%- macro words(content) -%}
    {%- if content is string -%}{{ content }}{%- else -%}
        {%- for part in content -%}{%- if part.type == 'text' -%}{{ part.text }}{%- endif -%}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = words(messages[0]['content']) -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = 'You are helpful.' -%}{%- set turns = messages -%}
{%- endif -%}
{{- '<|start_of_role|>system<|end_of_role|>' + opening + '<|end_of_text|>\\n' -}}
{%- if tools -%}
    {{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + words(message['content']) -}}
    {%- if message['tool_calls'] -%}{{- '<|tool_call|>' + message['tool_calls'] | tojson -}}{%- endif -%}
    {{- '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}
"""

# Answers in {% generation %} blocks, with their end token, one of them in a filter's reach and with loop controls around.
BLOCKS = """\
{%- for message in messages %}
    {%- if message.role == 'tool' %}{%- continue %}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- (message.content | trim) + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

STYLES = {
    "smollm2": SMOLLM2,
    "llama3": LLAMA3,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi3": PHI3,
    "granite": GRANITE,
    "blocks": BLOCKS,
}
# What a style renders beyond system, user and assistant turns of text.
TOOLS = ("llama3", "qwen3", "granite")
REASONING = ("qwen3",)
NO_SYSTEM = ("gemma",)
CONTROL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(
        "[INST]",
        "[/INST]",
        "<s>",
        "</s>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    ),
    *("<|end|>", "<|tool|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>", "<unk>"),
]
NOT_SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
END = {  # the token that ends a turn
    "smollm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "granite": "<|end_of_text|>",
    "blocks": "<|im_end|>",
}

_WORDS = [
    *(
        "red",
        "Why?",
        "2+2=4",
        "naïve",
        "猫",
        "1.10",
        "{x}",
        '"q"',
        "a\\b",
        "\n",
        "\n\n",
        "  ",
        "\tx",
        "don't",
        "…",
        "<b>",
        "[i]",
    ),
    *("<|im_", "|>", "<think", "<|"),  # parts of control tokens
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _text(rng: random.Random) -> str:
    """Return a text with white space at its ends, which is not blank."""
    words = rng.choices(_WORDS, k=rng.randint(0, 5))
    words.insert(rng.randint(0, len(words)), rng.choice(("yes", "no", "猫")))
    return rng.choice(["", " ", "\n"]) + " ".join(words) + rng.choice(["", "", " \n"])


def dialogue(style: str, rng: random.Random) -> dict[str, Any]:
    """Return a random row, messages and perhaps tools, that the template of a style renders."""
    messages: list[dict[str, Any]] = []
    tools = [TOOL] if style in TOOLS and rng.random() < 0.4 else None
    if style not in NO_SYSTEM and rng.random() < 0.4:
        messages.append({"role": "system", "content": _text(rng)})
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": _text(rng)})
        if tools and rng.random() < 0.5:
            call = {"name": "weather", "arguments": {"city": _text(rng), "days": rng.choice([1, 2.5, True])}}
            content = rng.choice(["", _text(rng)])
            calls = [{"type": "function", "function": call}]
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
            messages.append({"role": "tool", "name": "weather", "content": _text(rng)})
        answer = {"role": "assistant", "content": _text(rng)}
        if style in REASONING and rng.random() < 0.4:
            if rng.random() < 0.5:
                answer["reasoning_content"] = _text(rng)
            else:
                answer["content"] = f"<think>\n{_text(rng)}\n</think>\n\n{answer['content']}"
        messages.append(answer)
    return {"messages": messages} | ({"tools": tools} if tools else {})


def saved(style: str, folder: Path, template: str = "") -> Path:
    """Save a vocabulary with the control tokens of all styles and the template of one, as it would come from elsewhere."""
    texts = " ".join(_WORDS) * 3 + 'user assistant system tool ipython weather city {"name": "x"}\n' * 5
    base = Tokenizer.train([texts], 400)
    base.save(folder, model_max_length=4096)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    known = {token["content"] for token in spec["added_tokens"]}
    added = [(token, True) for token in CONTROL if token not in known] + [(token, False) for token in NOT_SPECIAL]
    spec["added_tokens"] += [
        {"id": base.vocab_size + i, "content": token, **flags, "special": special}
        for i, (token, special) in enumerate(added)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>" if style == "phi3" else END[style],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template or STYLES[style], encoding="utf-8")
    return folder
