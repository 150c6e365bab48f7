"""Conversations and tables as HTML in which what people and models write is text, never markup."""

import html
import re

Message = dict[str, str]  # {"role": "user", "content": "..."}
THOUGHT = re.compile(r"<think>(.*?)(</think>\s*|\Z)", re.DOTALL)  # an unfinished one too
NAMES = {"user": "You", "assistant": "Model"}

CSS = """
.talk { height: calc(100vh - 400px); min-height: 200px; overflow-y: auto; padding: 8px;
  border: 1px solid var(--border-color-primary); border-radius: 8px; }
.message { margin: 0 0 10px; padding: 6px 10px; border-radius: 8px; position: relative;
  color: var(--body-text-color); background: var(--background-fill-secondary); }
.message.user { background: var(--color-accent-soft); margin-left: 15%; }
.message .name { font-size: 12px; opacity: 0.75; }
.message .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.message details { margin: 4px 0; opacity: 0.75; }
.message summary { cursor: pointer; }
.message .copy { position: absolute; top: 4px; right: 8px; font-size: 12px; cursor: pointer;
  padding: 0; background: none; color: var(--body-text-color); opacity: 0.75; }
.message .copy:hover { text-decoration: underline; }
"""
TABLE_CSS = """
table { width: 100%; border-collapse: collapse; color: var(--body-text-color); }
th, td { padding: 6px 10px; text-align: left; vertical-align: top;
  border: 1px solid var(--border-color-primary); }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
"""

# The page follows the text as it grows, unless one has scrolled up to read; and it copies the text
JS = """
let follow = true;
element.addEventListener("scroll", (event) => {
  const talk = event.target;
  follow = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
}, true);
new MutationObserver(() => {
  const talk = element.querySelector(".talk");
  if (talk && follow) talk.scrollTop = talk.scrollHeight;
}).observe(element, { childList: true, subtree: true, characterData: true });
element.addEventListener("click", (event) => {
  const button = event.target.closest(".copy");
  if (button) {
    const texts = button.parentElement.querySelectorAll(":scope > .text");
    navigator.clipboard.writeText([...texts].map((text) => text.textContent).join(""));
  }
});
"""


def as_html(messages: list[Message]) -> str:
    """The messages one below the other, with the model's thoughts folded."""
    return (
        '<div class="talk" role="log" aria-label="Conversation" tabindex="0">'
        + "".join(map(message_as_html, messages))
        + "</div>"
    )


def message_as_html(message: Message) -> str:
    """One message.

    >>> user = {"role": "user", "content": " 2 < <b>3"}
    >>> message_as_html(user).partition('<div class="text">')[2]
    ' 2 &lt; &lt;b&gt;3</div></article>'
    """
    role, content = message["role"], message["content"]
    parts = _with_folded_thoughts(content) if role == "assistant" else _as_text(content)
    return (
        f'<article class="message {role}" aria-label="{NAMES[role]}">'
        f'<span class="name">{NAMES[role]}</span>'
        f'<button class="copy" aria-label="Copy this message">Copy</button>{parts}</article>'
    )


def table_as_html(titles: list[str], rows: list[list[str]]) -> str:
    """A table of texts.

    >>> table_as_html(["a"], [["<b>"]])
    '<table><tr><th>a</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"


def without_thoughts(text: str) -> str:
    """What the model itself is shown of its answers later on.

    >>> without_thoughts("<think>Two and two...</think> Four.")
    'Four.'
    """
    return THOUGHT.sub("", text)


def _with_folded_thoughts(text: str) -> str:
    parts, end = [], 0
    for thought in THOUGHT.finditer(text):
        parts.append(_as_text(text[end : thought.start()]))
        title = "Thought" if thought[2] else "Thinking ..."
        inside = _as_text(thought[1].strip("\n"))
        parts.append(f"<details><summary>{title}</summary>{inside}</details>")
        end = thought.end()
    return "".join([*parts, _as_text(text[end:])])


def _as_text(text: str) -> str:
    return f'<div class="text">{html.escape(text)}</div>' if text else ""
