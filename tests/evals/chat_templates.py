"""Chat templates in the styles of well-known families, in words of our own, and what each makes of
one user's turn: the text before it, after it, and the spaces that words and answer begin with."""

from __future__ import annotations

from dataclasses import dataclass

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set day = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set day = "1 Jan 2000" %}
{%- endif %}
{%- set system = "" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- "Today: " + day + "\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<|turn|>' + role + '\\n' + message['content'] | trim + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>model\\n' }}{% endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for message in messages %}"
    "{{ message['role'] | upper + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
QWEN_3 = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}{% set ns.last = loop.revindex0 %}{% break %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
        {%- set spoken = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- generation %}{{ spoken }}{% endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
DEEPSEEK = """\
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}
    {%- else %}{{ '<|Assistant|></think>' + message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|Assistant|>' }}{{ '<think>' if thinking else '</think>' }}
{%- endif %}
"""
CHANNELS = """\
{%- for message in messages %}
    {{- '<|start|>' + message['role'] }}
    {%- if message['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}
    {{- '<|message|>' + message['content'] + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A template, and what stands around the words of a user and before the answer.

    `thoughtful` is what stands after the words where the model is to think, None where there is no
    choice.
    """

    template: str
    before: str
    after: str
    thoughtful: str | None = None


STYLES = {
    "ChatML": Style(
        template=CHATML,
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Llama 3": Style(
        template=LLAMA_3,
        before="<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        after="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Gemma": Style(template=GEMMA, before="<s><|turn|>user\n", after="<|end|>\n<|turn|>model\n"),
    "Mistral": Style(template=MISTRAL, before="<s>[INST] ", after=" [/INST] "),
    "Vicuna": Style(template=VICUNA, before="USER: ", after="\nASSISTANT: "),
    "Qwen 3": Style(
        template=QWEN_3,
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        thoughtful="<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Harmony": Style(
        template=CHANNELS,
        before="<|start|>user<|message|>",
        after="<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "DeepSeek": Style(
        template=DEEPSEEK,
        before="<s><|User|>",
        after="<|Assistant|></think>",
        thoughtful="<|Assistant|><think>",
    ),
}
