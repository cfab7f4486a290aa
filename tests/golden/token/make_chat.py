#!/usr/bin/env python3
"""Write chat.json: what Jinja makes of the templates in templates/, with the settings that Hugging Face's libraries use.

"talks": conversations of [role, content]. "cases": [template's file, index of the talk, add_generation_prompt, text], the text null
where the template refuses the roles. "@TODAY@" stands for the day of the test. Needs jinja2. Run in this folder: ./make_chat.py
"""
import json
import pathlib

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
BOS, EOS = "<s>", "</s>"


def refuse(message):
    raise jinja2.TemplateError(message)


def render(text, messages, generate):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, **k)
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: {"%d %b %Y": "@TODAY@"}[form]
    try:
        return env.from_string(text).render(messages=messages, add_generation_prompt=generate, bos_token=BOS, eos_token=EOS)
    except jinja2.TemplateError:
        return None


SYSTEM = [
    "You answer briefly.",
    "\n\u00a0 Spaces around, \"quotes\" and 'quotes' \\n \u2003\x1f",
]
TURNS = [
    ["Hi", "Hello!", "What is 2 + 2?", "4", "Thanks"],
    ["  leading and trailing \n", "\t answer\u3000", "two\nlines\n", "", "<|im_end|> </s> [INST] {{ x }} \u65e5\u672c \U0001f600"],
]


def conversations():
    for k in range(2):
        for n in range(1, 6):
            turns = [{"role": ("user", "assistant")[i % 2], "content": TURNS[k][i]} for i in range(n)]
            yield turns
            yield [{"role": "system", "content": SYSTEM[k]}] + turns
    say = lambda *roles: [{"role": r, "content": f"text {i}"} for i, r in enumerate(roles)]
    yield say("system")
    yield say("user", "user")
    yield say("assistant", "user")
    yield say("user", "system", "user")
    yield say("system", "user", "system", "user")
    yield say("system", "system", "user")
    yield say("user", "assistant", "system")


def main():
    talks = list(conversations())
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        text = path.read_text()
        for i, messages in enumerate(talks):
            # llama3.jinja opens the answer whether asked or not.
            generate = path.name == "llama3.jinja" or (i // 2 + i) % 2 == 1
            cases.append([path.name, i, generate, render(text, messages, generate)])
    lines = lambda items: ",\n".join(json.dumps(x) for x in items)
    talks = [[[m["role"], m["content"]] for m in talk] for talk in talks]
    with open(HERE / "chat.json", "w") as out:
        out.write('{"talks": [\n' + lines(talks) + '\n], "cases": [\n' + lines(cases) + "\n]}\n")


main()
