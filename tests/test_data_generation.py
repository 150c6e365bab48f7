"""Data that a model makes, and the rules that check it; judges that compare two responses."""

import json
import math
import threading

import pytest

from llms_from_scratch.data_generation import (
    WISHES,
    extract_instruction,
    is_new_passive,
    is_passive,
    make_entry,
    pre_query,
    preference_pair,
    rewrite_prompt,
    what_is_wrong,
)
from llms_from_scratch.judge import (
    JudgeError,
    agreement,
    compare_responses,
    parse_preference,
    summarize_comparisons,
)
from llms_from_scratch.reflection import (
    build_instruction_reflection_prompt_no_input,
    build_response_reflection_prompt_no_input,
    build_response_reflection_prompt_with_input,
    extract_instruction_segment,
    extract_output_segment,
    extract_response,
    reflect_instructions,
    reflect_responses,
)
from llms_from_scratch.reflection import extract_instruction as extract_new_instruction

ENTRY = {"instruction": "Name a fruit.", "input": "", "output": "An apple."}

# --- Two responses


def test_places_are_swapped_so_that_a_judge_who_likes_a_place_decides_nothing():
    data = [ENTRY | {"one": "good", "two": "bad"}, ENTRY | {"one": "bad", "two": "good"}] * 3

    def prefers_good(prompt):
        return "A" if "Response A is: `good`" in prompt else "B"

    for ask, counts in (
        (prefers_good, {"first": 3, "second": 3, "prefers_a": 6, "prefers_b": 6}),
        (lambda prompt: "A", {"inconsistent": 6, "prefers_a": 12, "prefers_b": 0}),
        (lambda prompt: "tie", {"tie": 6, "prefers_a": 0}),
        (lambda prompt: "neither, or both", {"unparsable": 6}),
    ):
        summary = summarize_comparisons(compare_responses(data, "one", "two", ask))
        assert summary["entries"] == 6
        assert {name: summary[name] for name in counts} == counts
        outcomes = ("first", "second", "tie", "inconsistent", "unparsable", "failed")
        assert sum(summary[name] for name in outcomes) == 6


def test_a_failed_question_fails_its_comparison_alone_and_only_it_is_asked_again(tmp_path):
    data = [ENTRY | {"one": f"a{i}", "two": f"b{i}"} for i in range(4)]
    asked, lock = [], threading.Lock()

    def ask(prompt):
        with lock:
            asked.append(prompt)
        if "Response A is: `b2`" in prompt and len(asked) <= 8:
            raise JudgeError("HTTP status 500")
        return "A" if "Response A is: `a" in prompt else "B"

    path = tmp_path / "answers.jsonl"
    outcomes = [c.outcome for c in compare_responses(data, "one", "two", ask, path)]
    assert outcomes == ["first", "first", "failed", "first"]
    outcomes = [c.outcome for c in compare_responses(data, "one", "two", ask, path)]
    assert outcomes == ["first"] * 4 and len(asked) == 9
    with pytest.raises(ValueError, match="entry 0 has no text under the key 'three'"):
        compare_responses(data, "one", "three", ask)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("**B**", "B"),
        ("Response B is better.", "B"),
        ("A is better.", "A"),
        ("A is better than B, and B is better than A.", None),
        ("Tie", "tie"),
        ("Both are equally good.", "tie"),
        ("<think>Response A ...</think>B", "B"),
        ("<think>A", None),
        ("Response A is better than Response B.", None),
        ("A cat.", None),
        ("<html>A</html>", None),
        ("", None),
    ],
)
def test_a_preference_is_read_only_where_it_is_clear(answer, wanted):
    assert parse_preference(answer) == wanted


def test_agreement_is_the_area_under_the_roc_curve():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    is_right = [i % 3 == 0 for i in range(len(scores))]
    assert agreement(scores, is_right) == pytest.approx(metrics.roc_auc_score(is_right, scores))
    assert math.isnan(agreement([1, 2], [True, True]))


# --- Pairs, entries, passive voice


def test_the_polite_answer_is_chosen_and_the_impolite_one_rejected():
    polite, impolite = (preference_pair(ENTRY, wish, "An apple, you see.") for wish in WISHES)
    assert (polite["chosen"], polite["rejected"]) == ("An apple, you see.", "An apple.")
    assert (impolite["chosen"], impolite["rejected"]) == ("An apple.", "An apple, you see.")
    assert list(polite) == list(impolite) == [*ENTRY, "chosen", "rejected"]
    assert "more impolite way" in rewrite_prompt(ENTRY, "impolite")
    with pytest.raises(ValueError, match="must be one of .*, got 'rude'"):
        rewrite_prompt(ENTRY, "rude")


@pytest.mark.parametrize(
    ("rewritten", "wanted"),
    [
        ("An apple, please.", None),
        (" an APPLE. ", "both answers are the same"),
        ("  ", "an answer is empty"),
        ("word " * 40, "an answer has 40 words"),
    ],
)
def test_pairs_that_teach_nothing_are_found(rewritten, wanted):
    assert what_is_wrong(preference_pair(ENTRY, "polite", rewritten)) == wanted


def test_an_entry_without_an_instruction_or_an_answer_is_none():
    written = {1: "\n What is a fox?\nIt", 2: " \n"}
    made = [
        make_entry(
            number, lambda prefix, seed: written[seed], lambda text, answer=answer: answer, "<user>"
        )
        for number, answer in ((1, " An animal. "), (1, " "), (2, "?"))
    ]
    assert made[1:] == [None, None]
    assert made[0] == {"instruction": "What is a fox?", "input": "", "output": "An animal."}
    assert extract_instruction("") is None


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("The song was sung by her.", True),
        ("The letter has been quickly written.", True),
        ("She sings the song.", False),
        ("They had finished the game.", False),
        ("It is a bed.", False),
    ],
)
def test_passive_voice_is_a_form_of_to_be_with_a_participle(sentence, wanted):
    assert is_passive(sentence) is wanted


@pytest.mark.parametrize(
    ("rewritten", "wanted"),
    [
        ("The meal is cooked by the chef.", True),
        ("The chef cooks the meal.", False),
        ("Converted: The chef cooks the meal. It is done.", False),
        ("A house was built.", False),
        ("The meal is cooked. It is eaten.", False),
    ],
)
def test_a_new_passive_sentence_says_the_same_in_another_form(rewritten, wanted):
    assert is_new_passive("The chef cooks the meal.", rewritten) is wanted


# --- Reflection


def test_prompts_have_their_sections_in_order_and_give_back_what_is_in_them():
    for _, prompt, has_input in (
        (*build_instruction_reflection_prompt_no_input("Ask.", "So."), False),
        (*build_response_reflection_prompt_no_input("Ask.", "So."), False),
        (*build_response_reflection_prompt_with_input("Ask.", "About.", "So."), True),
    ):
        names = ["[Instruction]", "[The Start of Input]", "[The End of Input]"]
        names = names if has_input else names[:1]
        names += ["[The Start of Answer]", "[The End of Answer]", "[System]"]
        places = [prompt.index(name) for name in names]
        assert places == sorted(places)
        assert ("[The Start of Input]" in prompt) is has_input
        assert extract_instruction_segment(prompt, no_input=not has_input) == "Ask."
        assert extract_output_segment(prompt, no_input=not has_input) == "So."


def test_what_is_not_in_the_wanted_form_changes_no_entry():
    with_input = ENTRY | {"input": "red"}
    for text in ("", "A better one.", "[Better Answer] cut", "[New Instruction] a [End]"):
        assert reflect_responses([ENTRY], lambda prompt, system, text=text: text) == [
            ENTRY | {"reflected": False}
        ]
        assert reflect_instructions([ENTRY], lambda prompt, system, text=text: text) == [
            ENTRY | {"reflected": False}
        ]
    both = "Weak: End. [New Instruction] Name two. [End]\n[New Answer] Two. [End]"
    assert reflect_instructions([ENTRY, with_input], lambda prompt, system: both) == [
        {"instruction": "Name two.", "input": "", "output": "Two.", "reflected": True},
        with_input | {"reflected": False},
    ]
    found = reflect_responses([with_input], lambda prompt, system: "[Better Answer] X [End]")
    assert found == [with_input | {"output": "X", "reflected": True}]


def test_the_last_closed_answer_counts():
    text = "Form: [Better Answer] your answer [End]\n[Better Answer] The End is near. [End] ok"
    assert extract_response(text) == ["The End is near."]
    assert extract_response("[Better Answer] a [Better Answer] b [End]") == ["b"]
    assert extract_new_instruction("nothing") == ["", ""]


def test_a_repeated_form_is_no_answer():
    _, prompt = build_response_reflection_prompt_no_input("Ask.", "So.")
    assert extract_response(prompt) == []
    _, prompt = build_instruction_reflection_prompt_no_input("Ask.", "So.")
    assert extract_new_instruction(prompt) == ["", ""]


# --- With a server


def test_a_model_goes_on_from_the_mark_of_its_template_alone(smollm2_path):
    from llms_from_scratch.llm_client import query_model, query_raw
    from llms_from_scratch.serving.background import BackgroundServer
    from llms_from_scratch.serving.speaking import load_speaker

    speaker = load_speaker(smollm2_path)
    prefix = pre_query(speaker.turns)
    assert prefix == "<|im_start|>user\n"
    with BackgroundServer(speaker, aliases=("llama3",), max_new_tokens=8) as server:
        raw = f"{server.url}/api/generate"
        options = {"seed": 1, "temperature": 0.7, "num_predict": 6}
        texts = [query_raw(prefix, "llama3", raw, options=options) for _ in range(2)]
        assert texts[0] == texts[1] and texts[0].strip()
        chat = f"{server.url}/api/chat"
        plain = query_model("Who are you?", "llama3", chat)
        told = query_model("Who are you?", "llama3", chat, system="You are a bear.")
        assert plain != told
        assert json.dumps(plain)
    assert not server.thread.is_alive()
