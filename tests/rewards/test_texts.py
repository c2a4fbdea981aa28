"""Word error rates and ROUGE, against values by hand and a slow implementation."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from g2rpo.rewards import TruthError, character_accuracy, rouge_mean, word_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no parking here", 1.0),
        ("  no   parking\nhere ", 1.0),
        ("no parking", 2 / 3),
        ("no parking at here", 2 / 3),
        ("No parking here", 2 / 3),
        ("here parking no", 1 / 3),
        ("a b c d e f g", 0.0),
        ("", 0.0),
    ],
)
def test_word_accuracy_is_one_minus_the_word_error_rate(answer, expected):
    assert word_accuracy(answer, "no parking here") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        # ROUGE-1 2·2/5, ROUGE-2 2·1/3, ROUGE-L 2·2/5.
        ("a dog", "a dog sleeps", (0.8 + 2 / 3 + 0.8) / 3),
        # The same words backwards: ROUGE-1 1, ROUGE-2 0, ROUGE-L 1/3.
        ("sleeps dog a", "a dog sleeps", (1 + 0 + 1 / 3) / 3),
        # A word that is said too often matches once: 2·1/4 and 0 and 2·1/4.
        ("the the the", "the", 0.5),
        ("A Dog, sleeps!", "a dog sleeps", 1.0),
        ("dog", "Dog", 1.0),
        ("二 犬", "二犬", 1.0),
        ("犬", "二犬", (2 / 3 + 0 + 2 / 3) / 3),
        ("Σ", "σ", 1.0),
        ("cat", "dog", 0.0),
        ("...", "dog", 0.0),
        # Vowel signs belong to words, and a composed letter is the decomposed one.
        ("की", "कि", 0.0),
        ("की", "की", 1.0),
        ("আমি", "আমা", 0.0),
        ("كَتَبَ", "كُتِبَ", 0.0),
        ("שָׁלוֹם", "שלום", 0.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("ガ", "カ\u3099", 1.0),
        # Joiners and other formatting belong to no word; a space without width parts two.
        ("می\u200cخواهم", "میخواهم", 1.0),
        ("क्\u200dष", "क्ष", 1.0),
        ("co\u00adoperate", "cooperate", 1.0),
        ("a\u200bdog", "a dog", 1.0),
        ("dog ❤\ufe0f", "dog", 1.0),
        ("\U00020000犬", "\U00020000 犬", 1.0),
    ],
)
def test_rouge_mean_is_the_mean_of_three_f1_scores(answer, truth, expected):
    assert rouge_mean(answer, truth) == pytest.approx(expected)


def slow_rouge(given, right):
    @cache
    def longest(i, j):
        if i == len(given) or j == len(right):
            return 0
        if given[i] == right[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    def f1(matches, a, t):
        return 2 * matches / (a + t)

    def matches(n):
        a, t = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for words in (given, right)
        )
        return f1(sum(min(a[gram], t[gram]) for gram in t), a.total(), t.total())

    return (matches(1) + matches(2) + f1(longest(0, 0), len(given), len(right))) / 3


WORDS = st.lists(st.sampled_from(["a", "dog", "cat", "sleeps", "12"]), min_size=1, max_size=9)


@given(WORDS, WORDS.filter(lambda words: len(words) > 1))
@example(["a"], ["a", "a"])
def test_rouge_mean_equals_a_slow_implementation(given, right):
    assert rouge_mean(" ".join(given), " ".join(right)) == pytest.approx(slow_rouge(given, right))


@given(WORDS, WORDS)
def test_open_ended_is_symmetric_where_both_have_pairs(given, right):
    if min(len(given), len(right)) > 1:
        first, second = " ".join(given), " ".join(right)
        assert rouge_mean(first, second) == pytest.approx(rouge_mean(second, first))


@given(WORDS, st.data())
def test_every_missing_word_lowers_word_accuracy_equally(words, data):
    kept = data.draw(st.integers(0, len(words)))
    expected = kept / len(words)
    assert word_accuracy(" ".join(words[:kept]), " ".join(words)) == pytest.approx(expected)


@given(st.text(alphabet="ab1", min_size=1, max_size=12), st.text(alphabet="ab1", max_size=12))
def test_character_accuracy_is_word_accuracy_of_spelled_words(truth, answer):
    spelled = word_accuracy(" ".join(answer), " ".join(truth))
    assert character_accuracy(answer, truth) == pytest.approx(spelled)


@pytest.mark.parametrize("function", [word_accuracy, character_accuracy, rouge_mean])
def test_the_best_of_several_truths_counts(function):
    truths = ["colour", "color"]
    assert (
        function("color", truths) == function("colour", truths) == function("color", ["color"]) == 1
    )
    assert function("colr", truths) == max(function("colr", truth) for truth in truths)
    assert function("color", tuple(truths)) == function("color", np.array(truths)) == 1


@pytest.mark.parametrize("function", [word_accuracy, character_accuracy, rouge_mean])
@pytest.mark.parametrize(
    "truth", [[], [["a"]], ["a", None], ["a", ""], {"a": 1}, math.nan, [math.inf]]
)
def test_several_truths_are_a_list_of_texts(function, truth):
    with pytest.raises(TruthError, match="it must contain"):
        function("a", truth)


@pytest.mark.parametrize("function", [word_accuracy, character_accuracy])
def test_texts_are_compared_in_composed_form(function):
    assert function("cafe\u0301", "caf\u00e9") == function("caf\u00e9", "cafe\u0301") == 1
    assert function("cafe", "caf\u00e9") < 1


@pytest.mark.parametrize("function", [word_accuracy, character_accuracy])
def test_spaces_around_a_slash_are_read(function):
    assert function("1 / 2", "1 / 2") == function("1/2", "1/2") == 1
    assert function("1/2", "1 / 2") < 1


@pytest.mark.parametrize("function", [word_accuracy, character_accuracy, rouge_mean])
@pytest.mark.parametrize("truth", ["", "  ", None, True])
def test_a_truth_without_text_is_refused(function, truth):
    with pytest.raises(TruthError, match=r"truth is .*; it must contain"):
        function("a", truth)


def test_open_ended_needs_a_word():
    with pytest.raises(TruthError, match="it must contain a word"):
        rouge_mean("a", "?!")
