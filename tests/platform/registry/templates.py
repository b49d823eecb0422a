"""Chat templates in the styles that published models use."""

CHATML = """{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- else -%}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}
{%- endif -%}
{% for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

HEADERS_WITH_DATE = """{{ bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set offset = namespace(system='') %}
{%- for message in messages if message['role'] == 'system' %}
    {%- set offset.system = offset.system + message['content'] %}
{%- endfor %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday is " + date_string + "\\n" + offset.system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INSTRUCTIONS = """{%- if messages[0]['role'] == 'system' %}
    {%- set preface = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
    {%- set preface = '' %}{% set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate: user, assistant, user') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (preface if loop.last else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""

AS_JSON = """{% set ns = namespace(last_user=-1) %}
{% for message in messages[::-1] %}
  {% if message.role == "user" and ns.last_user < 0 %}
    {% set ns.last_user = messages | length - 1 - loop.index0 %}
    {% break %}
  {% endif %}
{% endfor %}
{{ messages | tojson(indent=1) }}|{{ ns.last_user }}|{{ {"b": "<é>", "a": 1} | tojson }}|{{ tools is none }}
{% generation %}answer{% endgeneration %}
{{ dict(a=1, b=2) | tojson(sort_keys=true, separators=(",", ":")) }}"""

ALL = {"chatml": CHATML, "headers": HEADERS_WITH_DATE, "instructions": INSTRUCTIONS, "json": AS_JSON}
