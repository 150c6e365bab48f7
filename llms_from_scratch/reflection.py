"""Bonus of chapter 7: a larger model improves instruction data, the questions or the answers.

The model is shown an entry, criticizes it, and writes a better one between tags; what it writes is
looked for between these tags and nowhere else. An entry for which they are missing stays as it was.
Source: Li et al., "Reflection-Tuning: Data Recycling Improves LLM Instruction-Tuning" (2023).
"""

import re
from collections.abc import Callable

JUDGE_OF_INSTRUCTIONS = "You review the quality of instructions, and make poor ones better."
PLACEHOLDERS = ("your new instruction", "your answer to it", "your answer")  # in the wanted form
JUDGE_OF_ANSWERS = "You review the quality of answers, and make poor ones better."

# --- What the model is asked


def build_instruction_reflection_prompt_no_input(ins: str, outp: str) -> tuple[str, str]:
    """System prompt and prompt: make a better instruction of this one, and answer it."""
    task = (
        "Look at the instruction above with a critical eye: its topic, how detailed it is, which "
        "knowledge it asks for, whether it is clear and worth answering. Say briefly "
        "what is weak. Then write a new instruction that is better and can be answered without "
        "further material, and an answer to it, in exactly this form:\n"
        "[New Instruction] your new instruction [End]\n"
        "[New Answer] your answer to it [End]"
    )
    return JUDGE_OF_INSTRUCTIONS, with_sections(task, ins, outp)


def build_response_reflection_prompt_no_input(ins: str, outp: str) -> tuple[str, str]:
    """System prompt and prompt: make a better answer to this instruction."""
    return JUDGE_OF_ANSWERS, with_sections(better_answer_task("the instruction"), ins, outp)


def build_response_reflection_prompt_with_input(ins: str, inp: str, outp: str) -> tuple[str, str]:
    """System prompt and prompt: make a better answer to this instruction about an input."""
    task = better_answer_task("the instruction and its input")
    return JUDGE_OF_ANSWERS, with_sections(task, ins, outp, inp)


def better_answer_task(what: str) -> str:
    """What to do with the answer to ``what``, and in which form."""
    return (
        f"Look at the answer to {what} above with a critical eye: is it right, helpful, on the "
        "subject, and detailed enough? Say briefly what is weak. Then write a better answer, in "
        "exactly this form:\n[Better Answer] your answer [End]"
    )


def with_sections(task: str, ins: str, outp: str, inp: str = "") -> str:
    """A prompt that shows an entry, and then says what to do with it."""
    given = f"[The Start of Input]\n{inp}\n[The End of Input]\n\n" if inp else ""
    answer = f"[The Start of Answer]\n{outp}\n[The End of Answer]\n\n"
    return f"[Instruction]\n{ins}\n\n{given}{answer}[System]\n{task}\n"


# --- What it has answered


def text_between(tag: str, text: str) -> str:
    """What stands between ``[tag]`` and the next ``[End]``, or an empty text.

    If the tag comes more than once, the last one counts that is closed: the first may quote the
    form that was asked for. What only repeats that form ("your answer") is an empty text too.
    """
    found = re.findall(rf"\[{tag}\]((?:(?!\[{tag}\]).)*?)\[End\]", text, re.DOTALL | re.IGNORECASE)
    last = found[-1].strip() if found else ""
    return "" if last.casefold().strip(" .") in PLACEHOLDERS else last


def extract_instruction(text: str) -> list[str]:
    """New instruction and new answer, each empty if it is not there.

    >>> extract_instruction("[New Instruction] End it. [End] [New Answer] Done. [End]")
    ['End it.', 'Done.']
    """
    return [text_between("New Instruction", text), text_between("New Answer", text)]


def extract_response(text: str) -> list[str]:
    """A list with the better answer, or an empty list.

    >>> extract_response("Weak. [Better Answer] The End of it. [End]"), extract_response("Fine.")
    (['The End of it.'], [])
    """
    answer = text_between("Better Answer", text)
    return [answer] if answer else []


def extract_instruction_segment(text: str, no_input: bool = True) -> str:
    """The instruction in a prompt of this module."""
    end = r"\[The Start of Answer\]" if no_input else r"\[The Start of Input\]"
    found = re.search(rf"\[Instruction\](.*?){end}", text, re.DOTALL)
    return found[1].strip() if found else ""


def extract_output_segment(text: str, no_input: bool = True) -> str:
    """The answer in a prompt of this module; the form of the prompt makes no difference to it."""
    found = re.search(r"\[The Start of Answer\](.*?)\[The End of Answer\]", text, re.DOTALL)
    return found[1].strip() if found else ""


# --- Whole data sets

Ask = Callable[[str, str], str]  # prompt and system prompt to an answer


def reflect_instructions(json_data: list[dict], client: Ask) -> list[dict]:
    """The entries with better instructions and answers where the model has given both.

    ``client(prompt, system)`` asks the model. An entry with an input, which a new instruction would
    not fit, is left as it is, and so is one for which the model has not kept to the form; each
    entry of the result says in "reflected" whether it is new.
    """
    result = []
    for entry in json_data:
        instruction = output = ""
        if not entry.get("input"):
            system, prompt = build_instruction_reflection_prompt_no_input(
                entry["instruction"], entry["output"]
            )
            instruction, output = extract_instruction(client(prompt, system))
        is_new = bool(instruction and output)
        new = {"instruction": instruction, "output": output} if is_new else {}
        result.append(entry | new | {"reflected": is_new})
    return result


def reflect_responses(json_data: list[dict], client: Ask) -> list[dict]:
    """The entries with better answers where the model has given one; see above."""
    result = []
    for entry in json_data:
        ins, inp, outp = entry["instruction"], entry.get("input", ""), entry["output"]
        if inp:
            system, prompt = build_response_reflection_prompt_with_input(ins, inp, outp)
        else:
            system, prompt = build_response_reflection_prompt_no_input(ins, outp)
        found = extract_response(client(prompt, system))
        new = {"output": found[0]} if found else {}
        result.append(entry | new | {"reflected": bool(found)})
    return result
