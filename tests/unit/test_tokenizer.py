"""Our reading of tokenizers and chat templates against that of `transformers`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from parsimony.errors import UserError
from parsimony.models.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (  # sets, tests for what is not given, dates and a filter, as in the templates of Llama 3.1
    "{{- bos_token | default('<|im_start|>') }}\n"
    "{%- if not date_string is defined %}\n    {%- set date_string = strftime_now('%Y') | length %}\n{%- endif %}\n"
    "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{{- 'Digits of the year: ' ~ date_string }}\n"
    "{%- for m in messages %}\n    {%- if m.role == 'none' %}\n        {%- continue %}\n    {%- endif %}\n"
    "    {{- m | tojson }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- 'assistant: ' }}\n{%- endif %}\n"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must take turns') }}{% endif %}[{{ m['content'] }}]{% endfor %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Où est-il? 東京 <|im_end|>\n"},
    {"role": "none", "content": "hidden"},
]


def both(tiny, folder, template: str | list | None = None, in_file: bool = False):
    """Ours and theirs of the tiny model's folder with another chat template."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((tiny.folder / file).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_type": "llama"}
    if in_file:
        (folder / "chat_template.jinja").write_text(template)
    elif template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def theirs(tiny):
    return AutoTokenizer.from_pretrained(tiny.folder, local_files_only=True)


@given(text=st.text())
def test_ids_and_texts_are_those_of_transformers(tiny, theirs, text):
    ours = tiny.tokenizer
    ids = ours.encode(text)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids) and ours.decode(ids, special=False) == theirs.decode(
        ids, skip_special_tokens=True
    )
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
def test_conversations_are_written_as_transformers_writes_them(tiny, tmp_path, template, in_file):
    ours, theirs = both(tiny, tmp_path, template, in_file)
    assert ours.chat(TALK) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)


def test_of_several_templates_the_default_one_speaks(tiny, tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    ours, theirs = both(tiny, tmp_path, named)
    assert ours.chat(TALK) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) != "no"


def test_what_a_folder_lacks_is_said_in_a_sentence(tiny, tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json: save"):
        Tokenizer(tmp_path)
    ours, _ = both(tiny, tmp_path)
    with pytest.raises(UserError, match="has no chat template"):
        ours.chat(TALK)
    with pytest.raises(UserError, match=r"token '<nowhere>' is not in the vocabulary of"):
        ours.id("<nowhere>")
    with pytest.raises(UserError, match="refuses this conversation: Roles must take turns"):
        both(tiny, tmp_path, STRICT)[0].chat(TALK)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer that `tokenizers` can read"):
        Tokenizer(tmp_path)


def test_a_template_reaches_nothing_outside_of_its_sandbox(tiny, tmp_path):
    ours, _ = both(tiny, tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="refuses this conversation"):
        ours.chat(TALK)
