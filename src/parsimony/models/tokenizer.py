"""A tokenizer and its chat template, by the libraries beneath `transformers` (docs/decisions/012)."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from parsimony.errors import UserError


class Tokenizer:
    """``tokenizer.json`` of a folder, with the special tokens and the chat template that lie beside it.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        Where there is no ``tokenizer.json``, or the library cannot read it.
    """

    def __init__(self, folder: Path):
        import tokenizers

        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.exists():
            raise UserError(f"{self.folder} has no tokenizer.json: save the tokenizer as a fast one")
        try:
            self.backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{file} is no tokenizer that `tokenizers` can read: {error}") from None
        self.backend.no_padding()
        self.backend.no_truncation()

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def id(self, token: str) -> int:
        """The number of a token.

        Raises
        ------
        UserError
            Where the vocabulary lacks it.
        """
        number = self.backend.token_to_id(token)
        if number is None:
            raise UserError(f"token {token!r} is not in the vocabulary of {self.folder}")
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands, without special tokens around it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], special: bool = True) -> str:
        """The text of ids, with or without special tokens."""
        return self.backend.decode(ids, skip_special_tokens=not special)

    def chat(self, messages: list[dict]) -> str:
        """A conversation as the model was trained to read it, up to where the assistant begins to speak.

        Raises
        ------
        UserError
            Where there is no chat template, or it refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except TemplateError as error:
            raise UserError(f"the chat template of {self.folder} refuses this conversation: {error}") from None

    @cached_property
    def _settings(self) -> dict:
        file = self.folder / "tokenizer_config.json"
        return json.loads(file.read_text()) if file.exists() else {}

    @cached_property
    def _special(self) -> dict[str, str]:
        """``bos_token``, ``eos_token`` and their like, which templates may name."""
        found = {name: value for name, value in self._settings.items() if name.endswith("_token") and value}
        return {name: value["content"] if isinstance(value, dict) else value for name, value in found.items()}

    @cached_property
    def _template(self):
        """The template in a sandbox, with the settings and functions that `transformers` gives it."""
        from datetime import datetime

        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        file = self.folder / "chat_template.jinja"
        source = file.read_text() if file.exists() else self._settings.get("chat_template")
        if isinstance(source, list):  # several templates by name
            source = {each["name"]: each["template"] for each in source}.get("default")
        if not source:
            raise UserError(f"{self.folder} has no chat template (chat_template.jinja, or in tokenizer_config.json)")

        def refuse(reason: str):
            raise TemplateError(reason)

        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        sandbox.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False} | options)
        sandbox.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        return sandbox.from_string(source)
