#!/usr/bin/env python3
"""Makes tests/golden/chat/cases.json: templates, variables and the text that Jinja2 gives for them.

The environment is the one that transformers' apply_chat_template sets up (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loop
controls, its tojson and raise_exception). The templates under tests/golden/chat/*.jinja are this project's own, in the formats and with the
constructs of the families that they are named after.
"""

import json
import pathlib

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat"


def environment():
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "  4.\n"}
SYSTEM = {"role": "system", "content": 'You are terse.\n\nVery "terse" — 很短. <b>&amp;</b>'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place, in °C",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call12345",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": {"place": 'Paris "VI"', "days": 2, "deep": [1.5, None, True, {"a": "é"}]},
            },
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": '{"temperature": 21}'}
THINKING = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."}
CONVERSATIONS = [
    {"messages": [USER]},
    {"messages": [SYSTEM, USER]},
    {"messages": [USER, ANSWER, {"role": "user", "content": " And 3 + 3? \n"}]},
    {
        "messages": [
            SYSTEM,
            USER,
            ANSWER,
            {"role": "user", "content": "日本語で? 👩‍👩‍👧"},
            {"role": "assistant", "content": "はい"},
        ],
        "add_generation_prompt": False,
    },
    {"messages": [SYSTEM, USER], "tools": TOOLS},
    {"messages": [USER, CALL, RESULT], "tools": TOOLS},
    {"messages": [SYSTEM, USER, CALL, RESULT, RESULT, ANSWER, USER], "tools": TOOLS},
    {"messages": [USER, THINKING, USER, THINKING, USER]},
    {"messages": [USER], "enable_thinking": False},
    {"messages": [USER, USER]},
    {"messages": [{"role": "assistant", "content": "hello"}]},
    {"messages": [USER, SYSTEM]},
    {"messages": []},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "text", "text": " part two "}]}
        ]
    },
    {"messages": [{"role": "user", "content": None}]},
]

# One construct each: a template, and variables beside those of BASE.
BASE = {
    "s": "Hello World",
    "e": "",
    "n": None,
    "t": True,
    "f": False,
    "i": 7,
    "neg": -7,
    "x": 2.5,
    "big": 1e20,
    "small": 1e-7,
    "l": [3, 1, 2],
    "names": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": "two", "items": [1]},
    "nested": [{"k": {"v": 1}, "on": True}, {"k": {"v": 2}, "on": False}, {"k": {"v": 3}}],
    "u": "Ünï 😀 ße",
    "quote": 'it\'s "both"',
    "ws": " \t pad \n",
    "html": "<a href='x'>&</a>",
}
SNIPPETS = """
{{ s }}|{{ e }}|{{ n }}|{{ t }}|{{ f }}|{{ i }}|{{ x }}|{{ big }}|{{ small }}|{{ missing }}
{{ 1e3 }} {{ 1.0 }} {{ 100000000000000000.0 }} {{ 0.1 + 0.2 }} {{ 5 / 2 }} {{ 4 / 2 }}
{{ i // 2 }} {{ neg // 2 }} {{ i % 3 }} {{ neg % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ x // 1 }} {{ -x % 2 }} {{ -2 ** 2 }}
{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ - i }} {{ +i }} {{ 7 - -3 }} {{ 1_000 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }} {{ 'a' + 'b' }} {{ 'ab' * 3 }} {{ [1] + [2, 3] }} {{ [0] * 3 }} {{ 'x' 'y' }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ true == 1 }} {{ none == none }}
{{ 'ell' in s }} {{ 'b' in d }} {{ 3 in l }} {{ 9 not in l }} {{ not 3 in l }} {{ 'x' in missing }}
{{ t and i }} {{ f and i }} {{ e or 'default' }} {{ n or f or 0 }} {{ not t }} {{ not e }}
{{ 'yes' if t else 'no' }} {{ 'yes' if f }} {{ 'a' if f else 'b' if f else 'c' }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[-5:] }} {{ s[:100] }} {{ s[4:1] }} {{ u[::-1] }} {{ u[4] }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[::2] }} {{ l[10] }} {{ l[-2:] }} {{ l[:-1] }}
{{ d.a }} {{ d['a'] }} {{ d.missing }} {{ d['items'] }} {{ nested[1].k.v }} {{ nested[0]['k']['v'] }} {{ nested.0.on }}
{{ d }} {{ l }} {{ nested }} {{ [1, 'a', none, true, 2.0] }} {{ (1, 2) }} {{ (1,) }} {{ {} }} {{ {'k': 'v', 'n': [1]} }} {{ [quote, s, u] }}
{{ s | upper }} {{ s | lower }} {{ 'hello world-foo' | title }} {{ 'hELLO' | capitalize }} {{ u | upper }} {{ ws | trim }}| {{ 'xxaxx' | trim('x') }}
{{ s | length }} {{ u | length }} {{ l | length }} {{ d | length }} {{ missing | length }} {{ e | count }}
{{ l | join(', ') }} {{ l | join }} {{ names | join('-') | upper }} {{ nested | join(',', attribute='k') }} {{ 'abc' | join('.') }}
{{ missing | default('x') }} {{ e | default('x') }} {{ e | default('x', true) }} {{ n | default('x') }} {{ n | d('x', boolean=true) }}
{{ d | tojson }} {{ u | tojson }} {{ quote | tojson }} {{ nested | tojson }} {{ [] | tojson }} {{ {} | tojson }} {{ n | tojson }} {{ big | tojson }} {{ html | tojson }}
{{ nested | tojson(indent=2) }} {{ d | tojson(indent=4) }} {{ [] | tojson(indent=4) }} {{ d | tojson(separators=(',', ':')) }} {{ d | tojson(sort_keys=true) }}
{{ '3' | int }} {{ '3.7' | int }} {{ 'x' | int }} {{ 'x' | int(9) }} {{ 3.9 | int }} {{ '2.5' | float }} {{ 'x' | float }} {{ i | float }} {{ i | string ~ 'a' }}
{{ l | sort }} {{ l | sort(reverse=true) }} {{ names | sort }} {{ names | sort(case_sensitive=true) }} {{ nested | sort(attribute='k.v', reverse=true) | map(attribute='k.v') | list }}
{{ l | first }} {{ l | last }} {{ [] | first }} {{ l | min }} {{ l | max }} {{ l | sum }} {{ [0.5, 1] | sum }} {{ neg | abs }} {{ x | round }} {{ 2.345 | round(2) }} {{ 2.1 | round(method='ceil') }}
{{ 1.5 | round(400) }} {{ 2.675 | round(2) }} {{ 0.5 | round }} {{ -2.5 | round }} {{ 1.005 | round(323) }} {{ 1e300 | round(300) }}
{{ 1250.0 | round(-2) }} {{ 1350.5 | round(-2) }} {{ 50.0 | round(-2) }} {{ 50.1 | round(-2) }} {{ -49.0 | round(-2) }} {{ 1e308 | round(-400) }}
{{ 42 | round }} {{ 42 | round(400) }} {{ 25 | round(-1) }} {{ 35 | round(-1) }} {{ -25 | round(-1) }} {{ 7 | round(-30) }} {{ true | round }}
{{ 1.25 | round(1, 'ceil') }} {{ 1.25 | round(1, 'floor') }} {{ 1234.5 | round(-2, 'ceil') }} {{ 3 | round(400, 'floor') }} {{ 3 | round(-1, 'ceil') }}
{{ 1.5 | round(400, 'ceil') }}
{{ 1.5 | round(-400, 'ceil') }}
{{ 1e300 | round(10, 'floor') }}
{{ 1.5 | round(1, 'up') }}
{{ 1.7e308 | round(-308) }}
{{ 'a' | round }}
{{ l | reverse | list }} {{ s | reverse }} {{ 'abc' | list }} {{ [1, 1, 2, 'a', 'A'] | unique | list }} {{ d | list }}
{{ d | items | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d | dictsort }} {{ missing | items | list }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }}
{{ nested | selectattr('on') | list }} {{ nested | rejectattr('on') | list }} {{ nested | selectattr('on', 'defined') | list | length }} {{ nested | selectattr('k.v', 'gt', 1) | list | length }} {{ nested | selectattr('on', 'equalto', true) | list }}
{{ l | select('odd') | list }} {{ l | reject('odd') | list }} {{ [0, 1, '', 'a', none] | select | list }} {{ names | map('upper') | list }} {{ nested | map(attribute='on', default='-') | list }} {{ l | select('in', [1, 2]) | list }}
{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) }}|{{ 'a\\nb' | indent('> ') }}
{{ 'a-b-c' | replace('-', '+') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ html | e }} {{ html | escape }} {{ html | safe }}
{{ ws.strip() }}|{{ ws.lstrip() }}|{{ ws.rstrip() }}|{{ 'xyhixy'.strip('xy') }}|{{ '\\u3000a\\u00a0'.strip() }}|
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a</think>b</think>c'.split('</think>')[-1] }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a b c '.split(none, 1) }}
{{ s.startswith('He') }} {{ s.endswith('ld') }} {{ s.startswith(('x', 'H')) }} {{ s.upper() }} {{ s.lower() }} {{ 'foo bar'.title() }} {{ 'foo'.capitalize() }} {{ 'a.b'.replace('.', '') }} {{ s.find('World') }} {{ s.find('z') }} {{ s.count('o') }}
{{ ', '.join(names) }} {{ '{} and {}'.format(1, 'b') }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=3) }} {{ '%s-%d' % ('a', 3) }} {{ '%s' | format('z') }} {{ '%.2f' % 2.345 }} {{ '12'.isdigit() }} {{ 'a\\nb\\n'.splitlines() }}
{{ missing is defined }} {{ s is defined }} {{ missing is undefined }} {{ n is none }} {{ s is none }} {{ n is not none }} {{ missing is none }}
{{ s is string }} {{ i is string }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ i is iterable }} {{ s is sequence }} {{ l is sequence }} {{ d is sequence }} {{ i is number }} {{ x is number }} {{ t is number }} {{ i is integer }} {{ t is integer }} {{ x is float }}
{{ t is boolean }} {{ i is boolean }} {{ t is true }} {{ f is false }} {{ 1 is true }} {{ i is odd }} {{ i is even }} {{ i is divisibleby 7 }} {{ i is divisibleby(2) }} {{ i is equalto 7 }} {{ i is eq(7) }} {{ 3 is in l }} {{ 3 is in([1]) }} {{ i is gt 5 }} {{ i is lt(5) }} {{ i is ne 7 }}
{{ 'a' is lower }} {{ 'A' is upper }} {{ not s is defined }} {{ s is defined and i is odd }} {{ s is not defined or f }} {{ range is callable }} {{ none is sameas none }}
{% for a in l %}{{ a }}{{ ',' if not loop.last }}{% endfor %} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for c in 'añ😀' %}[{{ c }}]{% endfor %}
{% for a in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}
{% for a in l if a > 1 %}{{ loop.index }}:{{ a }} {% endfor %} {% for a in [] %}x{% else %}none{% endfor %} {% for a in missing %}x{% else %}empty{% endfor %} {% for a in l if a > 9 %}x{% else %}filtered{% endfor %}
{% for a in range(10) %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 5 %}{% break %}{% endif %}{{ a }}{% endfor %} {{ range(3) | list }} {{ range(5, 0, -2) | list }} {{ range(2, 4) | list }}
{% for a in l %}{% for b in names %}{{ loop.index }}{{ a }}{{ b }}{% endfor %}|{{ loop.index }}{% endfor %} {% for a in l %}{{ loop.cycle('odd', 'even') }} {% endfor %}
{% set y = 1 %}{% for a in l %}{% set y = a %}{% endfor %}{{ y }} {% set ns = namespace(y=1, z='q') %}{% for a in l %}{% set ns.y = ns.y + a %}{% endfor %}{{ ns.y }}{{ ns.z }}{{ ns.w }}
{% if t %}{% set inside = 5 %}{% endif %}{{ inside }} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% set a, b = [3, 4] %}{{ a + b }} {% set block %}  x {{ i }} {% endset %}[{{ block }}] {% set block | upper | trim %} q {% endset %}[{{ block }}]
{% if f %}a{% elif e %}b{% elif t %}c{% else %}d{% endif %} {% if missing %}a{% else %}b{% endif %}
{% macro m(a, b='B', c=none) %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}{{ m(c=3, a=1) }}{{ m() }}{{ m(1) | upper }}{% set r = m('x') %}{{ r | length }}
{% macro fact(n) %}{{ 1 if n <= 1 else n * fact(n - 1) | int }}{% endmacro %}{{ fact(5) }} {% macro outer() %}{{ g }}{% endmacro %}{% set g = 'late' %}{{ outer() }}
{% with q = 1, r = 2 %}{{ q + r }}{% endwith %}{{ q }} {% filter upper %}abc {{ s }}{% endfilter %} {% raw %}{{ not }} {% this %}{% endraw %} {# comment #}end
a   {%- if t -%}   b   {%- endif -%}   c   {{- s -}}   d {#- comment -#} e
{%+ if t +%} kept {%+ endif +%}
{{ '\\t|\\x41|\\u00e9|\\\\|\\'' }} {{ "dq 'x'" }} {{ 'sq "x"' }} {{ "\\"" }}
{{ dict(a=1, b='x') }} {{ dict({'z': 1}, y=2) }} {{ {'a': {'b': [1, {'c': 2}]}}['a']['b'][1].c }} {{ {'a': 1}.a }} {{ [1, 2, 3,] }} {{ [[1, 2], [3]] | map('length') | list }}
{{ (s if t else e) | upper }} {{ (l | sort)[0] }} {{ l | sort | first + 1 }} {{ (1, 2)[1] }} {{ 'abc'[1] | upper }} {{ -l[0] | abs }} {{ 'a' in 'abc' and 'z' not in 'abc' }} {{ 1 if 2 > 1 and not f else 0 }}
{{ d == {'a': 'two', 'b': 1, 'items': [1]} }} {{ l == [3, 1, 2] }} {{ l != [] }} {{ [1, 2] == (1, 2) }} {{ 'a' == 'a' == 'a' }} {{ missing == missing2 }} {{ missing == none }}
{{ missing.attribute }}
{{ missing['x'] }}
{{ s.nothing }} {{ s.nothing.more }}
{{ 1 / 0 }}
{{ 'a' + 1 }}
{{ missing + 1 }}
{{ l < 3 }}
{{ s() }}
{{ l.append(4) }}
{{ d.update({'a': 2}) }}
{{ range(1000000) | length }}
{{ nothing | nosuchfilter }}
{{ s is nosuchtest }}
{{ raise_exception('no way: ' ~ i) }}
{% for a in i %}{% endfor %}
{% set d.a = 3 %}
{{ m(1, 2) }}
{% macro k(a) %}{% endmacro %}{{ k(1, 2) }}
{% for a, b in l %}{% endfor %}
{{ unclosed
{% if t %} unclosed
{% endfor %}
{{ 'unclosed }}
{{ 1 + }}
{{ ] }}
{% nosuchtag %}
{# unclosed
{{ a b }}
{% for %}{% endfor %}
""".strip("\n").split("\n")

MULTILINE = [
    "{% for a in l %}\n  {% if a > 1 %}\n    {{ a }}\n  {% endif %}\n{% endfor %}\nend\n",
    "line\n  {%- for a in l -%}\n  x{{ a }}\n  {%- endfor %}\n\nend\n\n",
    "  {# comment #}  \n{% set a = 1 %}\n\n{{ a }}\n",
    "\n\n{{ s }}\n\n",
    "{%- set x = namespace(v='') -%}\n{%- for a in l -%}\n{%- set x.v = x.v ~ a -%}\n{%- endfor -%}\n{{- x.v -}}\n",
    "a\n  {%+ if t %}\n b\n  {% endif %}\nc {% if t %}\nd\n{% endif %}\n",
    "{{ s\n  | upper\n  | replace('O',\n '0') }}\r\n{% if t %}\r\nx\r\n{% endif %}\r\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nafter\n{%- raw -%}  y  {%- endraw -%}  z",
    "{{ {'a': {'b': 1}} }}{{ {'c': {}}}}",
]


def render(env, template, variables):
    try:
        return {"expected": env.from_string(template).render(**variables)}
    except Exception:  # whatever Jinja2 refuses must be refused
        return {"error": True}


def main():
    env = environment()
    cases = []
    for template in SNIPPETS + MULTILINE:
        cases.append({"template": template, "variables": BASE} | render(env, template, BASE))
    conversations = []
    for path in sorted(FOLDER.glob("*.jinja")):
        for conversation in CONVERSATIONS:
            variables = {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            } | conversation
            conversations.append(
                {"template": path.name, "input": conversation} | render(env, path.read_text(), variables)
            )
    for case in cases:
        del case["variables"]
    output = {"jinja2": jinja2.__version__, "variables": BASE, "cases": cases, "conversations": conversations}
    (FOLDER / "cases.json").write_text(json.dumps(output, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{len(cases)} cases ({sum('error' in c for c in cases)} errors), {len(conversations)} conversations "
        f"({sum('error' in c for c in conversations)} errors)"
    )


if __name__ == "__main__":
    main()
