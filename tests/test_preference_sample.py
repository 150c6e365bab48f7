"""The bundled preference pairs: a program can check each preference, and none is known twice."""

import make_preference_sample
import pytest

from llms_from_scratch.ch07 import load_entries, split_data
from llms_from_scratch.data import SAMPLES, find_asset
from llms_from_scratch.preference_rules import RULES, follows_rule, rule_counts

COMMITTED = SAMPLES / "preference-data-synthetic.json"


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return load_entries(COMMITTED)


def test_each_chosen_answer_passes_its_rule_and_no_rejected_one_does(pairs):
    assert len(pairs) == 360
    assert all(follows_rule(pair["chosen"], pair["rule"]) for pair in pairs)
    assert not any(follows_rule(pair["rejected"], pair["rule"]) for pair in pairs)
    assert all(pair["output"] == pair["chosen"] for pair in pairs)


def test_each_rule_has_as_many_pairs_and_no_pair_comes_twice(pairs):
    assert {rule: sum(pair["rule"] == rule for pair in pairs) for rule in RULES} == dict.fromkeys(
        RULES, 60
    )
    assert len({pair["instruction"] for pair in pairs}) == 360
    assert len({pair["chosen"] for pair in pairs}) == 360


def test_no_question_of_the_test_set_is_one_of_the_training_set(pairs):
    parts = [{pair["instruction"].split("?")[0] for pair in part} for part in split_data(pairs)]
    assert not parts[0] & parts[2] and not parts[0] & parts[1] and not parts[1] & parts[2]


def test_the_file_is_what_its_maker_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(make_preference_sample, "TARGET", tmp_path / "made.json")
    make_preference_sample.main()
    assert (tmp_path / "made.json").read_bytes() == COMMITTED.read_bytes()


def test_the_sample_stands_in_for_the_pairs_of_the_book():
    assert find_asset("preference-data").sample == COMMITTED.name


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_passed_by_nothing(rule):
    assert not follows_rule("", rule) and not follows_rule("  \n", rule)


def test_counts_are_by_rule_and_of_all():
    entries = [{"rule": "upper_case"}, {"rule": "upper_case"}, {"rule": "five_words"}]
    counts = rule_counts(entries, ["YES", "yes", "yes"])
    assert counts == {"all": [2, 3], "upper_case": [1, 2], "five_words": [1, 1]}
    with pytest.raises(ValueError, match="the rule must be one of .*'shout'"):
        follows_rule("HEY", "shout")
