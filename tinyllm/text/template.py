"""The chat template that is written into checkpoints: ChatML in Jinja, for programs other than this one.

It is never rendered here; `text.chat` builds the same ids segment by segment, and tests hold the two to equal results.
"""

from __future__ import annotations

# Every tag strips the white space around it, and every line break that counts is a string, because `-%}` would strip a literal one.
# Content is trimmed so that the whole text, tokenized at once, splits where the segments of `chat.render` do. The generation block
# marks the tokens that transformers counts as the assistant's.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
