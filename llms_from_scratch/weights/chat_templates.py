"""How models are asked, in the languages of others: Jinja for the hub, Go for Ollama.

A model that came with a Jinja template keeps it. Chapter 7's models get one here, and all get
Ollama's, so that the same question becomes the same text everywhere.
"""

from llms_from_scratch.ch07 import PROMPT_STYLES
from llms_from_scratch.weights.chat_formats import (
    ChatFormat,
    ChatMLFormat,
    GemmaFormat,
    OlmoFormat,
    QwenFormat,
    SmolLM2Format,
    TurnFormat,
)

CHATML_GO = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
LLAMA3_GO = """{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
GEMMA_GO = """{{- $system := .System }}
{{- range .Messages }}{{ if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}{{ end }}<start_of_turn>model
"""
GO_TEMPLATES: dict[type[TurnFormat], str] = {
    ChatMLFormat: CHATML_GO,
    SmolLM2Format: CHATML_GO,
    QwenFormat: CHATML_GO + "<think>\n\n</think>\n\n",
    OlmoFormat: CHATML_GO.replace("<|im_end|>", "\n<|im_end|>"),
    ChatFormat: LLAMA3_GO,
    GemmaFormat: GEMMA_GO,
}
END = "<|endoftext|>"


def prompt_around_instruction(prompt_style: str) -> tuple[str, str]:
    """What chapter 7's prompt has before an instruction and after it.

    >>> prompt_around_instruction("phi3")
    ('<|user|>\\n', '\\n<|assistant|>:\\n')
    """
    style = PROMPT_STYLES[prompt_style]
    prompt = style.format_input({"instruction": "\0", "input": ""}) + style.response_header
    before, _, after = prompt.partition("\0")
    return before, after


def jinja_for_style(prompt_style: str, end: str = END) -> str:
    """A chat template of the hub for a model of chapter 7; each question stands by itself."""
    before, after = (repr(text) for text in prompt_around_instruction(prompt_style))
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {before} + message['content'] + {after} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ message['content'] + {end!r} }}}}"
        "{% endif %}{% endfor %}"
    )


def go_template(asked: TurnFormat | str | None, end: str = END) -> str:
    """Ollama's template for a form of conversation, or for the name of a prompt style.

    With None, a model that only goes on with a text, the template is the text.
    """
    if asked is None:
        return "{{ .Prompt }}"
    if isinstance(asked, TurnFormat):
        if type(asked) not in GO_TEMPLATES:
            raise ValueError(f"there is no template for Ollama of {type(asked).__name__}")
        return GO_TEMPLATES[type(asked)]
    before, after = prompt_around_instruction(asked)
    user = f'{{{{ if eq .Role "user" }}}}{before}{{{{ .Content }}}}{after}'
    model = f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{end}'
    return f"{{{{- range .Messages }}}}{user}{model}{{{{ end }}}}{{{{ end }}}}"


def modelfile(asked: TurnFormat | str | None, gguf_name: str = "model.gguf", end: str = END) -> str:
    """The Modelfile with which ``ollama create NAME -f Modelfile`` takes in a GGUF file."""
    if isinstance(asked, TurnFormat):
        stops = list(asked.stops)
    else:
        stops = [end] if asked else []
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{go_template(asked, end)}"""']
    if isinstance(asked, TurnFormat) and asked.default_system:
        lines.append(f'SYSTEM """{asked.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"
