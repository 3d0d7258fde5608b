"""`make words` finds each word that the style page rules out, wherever it is, and nothing else."""

import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
tool = runpy.run_path(str(ROOT / "tools" / "words.py"))
WORDS, offenders = tool["WORDS"], tool["offenders"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "text", ["{}", "It is {} in a sentence.", "({}),", "def test_{}_is_a_name():", "{}'s", "# {}."]
)
def test_each_word_is_found_with_its_line(word, text):
    for written in (word, word.capitalize()):
        found = list(offenders("One line.\n" + text.format(written.replace(" ", "_" if "_{}_" in text else " "))))
        assert found == ([] if " " in word and "_{}_" in text else [(2, word)])


@pytest.mark.parametrize("phrase", [word for word in WORDS if " " in word])
@pytest.mark.parametrize("end", ["\n", "\n# ", "\n    # ", "\n  "])
def test_a_phrase_is_found_across_the_end_of_a_line(phrase, end):
    assert list(offenders(f"# It is {phrase.replace(' ', end, 1)} here")) == [(1, phrase)]


@pytest.mark.parametrize(
    "text", ["the theme of this shell, retold", '"nobody" is a user', "`told`", "'he'", "its own", "by it self-made"]
)
def test_parts_of_words_and_quoted_names_are_not_found(text):
    assert list(offenders(text)) == []


def test_the_offenders_are_listed_by_file_and_line_and_fail_the_check(tmp_path, capsys):
    for name in ("page.md", "figures.json"):  # the second one is no prose
        (tmp_path / name).write_text("A line.\nThe caller is {}.\n".format("told"))
    assert tool["main"]([str(tmp_path)]) == "1 use(s) of words that CONTRIBUTING.md rules out"
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'page.md'}:2: 'told'; write instead: ")
    (tmp_path / "page.md").write_text("A line.\n")
    assert tool["main"]([str(tmp_path)]) is None


def test_every_place_exists():
    assert [place for place in tool["PLACES"] if not (ROOT / place).exists()] == []


def test_the_style_page_lists_every_word():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [word for word in WORDS if f"`{word}`" not in page] == []
