"""The chat template that is written into checkpoints: ChatML in Jinja, for programs other than this one.

It is never rendered here; `text.chat` builds the same ids segment by segment, and tests hold the two to equal results. Tools, tool
calls and reasoning become the text that `data.records` makes of them. What it cannot render it refuses by `raise_exception`.

Left out: joining consecutive turns of one role, leaving out nulls that Arrow added to arguments (both need the whole data).
"""

from __future__ import annotations

# Every tag strips the white space around it, and every line break that counts is a string, because `-%}` would strip a literal one.
# Content loses blank lines in front and white space behind, so that the whole text, tokenized at once, splits where the segments of
# `chat.render` do. The generation block marks the tokens that transformers counts as the assistant's.
CHAT_TEMPLATE = """\
{%- macro trimmed(text) -%}
{%- set end = text.rstrip() -%}
{%- set blank = end[:end | length - end.lstrip() | length] | replace('\\r', '\\n') -%}
{{- blank.split('\\n')[-1] + end.lstrip() -}}
{%- endmacro -%}
{%- macro text_of(value, what) -%}
{%- if value is string -%}
{{- value -}}
{%- elif value is defined and value is iterable and value is not mapping -%}
{%- for part in value -%}
{%- if part is mapping and part['type'] == 'text' and part['text'] is string -%}
{{- part['text'] -}}
{%- else -%}
{{- raise_exception(what + ': only parts of type text are supported') -}}
{%- endif -%}
{%- endfor -%}
{%- else -%}
{{- raise_exception(what + ': expected a text') -}}
{%- endif -%}
{%- endmacro -%}
{%- macro call_text(call) -%}
{%- set wrapped = call['function'] is mapping -%}
{%- set fields = call['function'] if wrapped else call -%}
{{- '{"name": ' + fields['name'] | tojson -}}
{%- for key, value in fields.items() -%}
{%- if value is not none and key != 'name' and (wrapped or key not in ['id', 'type', 'index']) -%}
{{- ', ' + key | tojson + ': ' -}}
{%- if key == 'arguments' and value is string and value.strip()[:1] in ['{', '['] -%}
{{- value.strip() | replace('\\r', ' ') | replace('\\n', ' ') -}}
{%- else -%}
{{- value | tojson -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- '}' -}}
{%- endmacro -%}
{%- macro content_of(message) -%}
{%- set calls = (message['tool_calls'] or []) + ([message['function_call']] if message['function_call'] else []) -%}
{%- set named = [message['reasoning_content'], message['thinking'], message['reasoning']] -%}
{%- set thoughts = named | select | list -%}
{%- for thought in thoughts -%}
{%- if thought not in thoughts[:loop.index0] -%}
{{- '<think>\\n' + trimmed(text_of(thought, 'reasoning')) + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- set said = '' if calls and not message['content'] else text_of(message['content'], 'content') -%}
{{- said -}}
{%- for call in calls -%}
{%- if said or thoughts or not loop.first -%}
{{- '\\n' -}}
{%- endif -%}
{{- call_text(call) -}}
{%- endfor -%}
{%- endmacro -%}
{%- set listed = 'Tools:\\n' + tools | tojson if tools else '' -%}
{%- if listed and (not messages or messages[0]['role'] not in ['system', 'developer']) -%}
{{- '<|im_start|>system\\n' + listed + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set role = {'developer': 'system', 'function': 'tool'}.get(message['role'], message['role']) -%}
{%- if role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role ' + role | tojson) -}}
{%- endif -%}
{{- '<|im_start|>' + role + '\\n' -}}
{%- set text = content_of(message) -%}
{%- if listed and loop.first and role == 'system' -%}
{%- set text = text + '\\n\\n' + listed if text.strip() else listed -%}
{%- endif -%}
{%- if role == 'assistant' and message['weight'] != 0 and message['train'] != false and message['loss'] != false -%}
{%- generation -%}
{{- trimmed(text) + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- trimmed(text) + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Conversations as plain text, for models without chat tokens: an answer ends with the model's own end token. Contents lose white space
# at both ends, so that a line break before them is always a token of its own.
PLAIN_TEMPLATE = """\
{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} -%}
{{- bos_token if bos_token is defined else '' -}}
{%- for message in messages -%}
{%- if message['role'] not in names -%}
{{- raise_exception('unknown role ' + message['role'] | tojson) -}}
{%- endif -%}
{{- names[message['role']] + ':\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] | trim + eos_token -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim -}}
{%- endif -%}
{%- if not loop.last or add_generation_prompt -%}
{{- '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:\\n' -}}
{%- endif -%}
"""
# SmolLM2 names the token that begins a turn as its bos, and begins no text with it.
PLAIN_WITHOUT_BOS = PLAIN_TEMPLATE.replace("{{- bos_token if bos_token is defined else '' -}}\n", "")
