"""The shipped checkpoints: their files, their tokenizer, and how well they solve."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoConfig, AutoTokenizer  # noqa: E402

from examples.word_problems.contexts import CONTEXTS  # noqa: E402
from examples.word_problems.evaluate import MODELS, Solver, right, success  # noqa: E402
from examples.word_problems.problems import LARGEST  # noqa: E402
from examples.word_problems.questions import load_rows  # noqa: E402
from examples.word_problems.recipes import RECIPES  # noqa: E402
from examples.word_problems.vocabulary import build_tokenizer  # noqa: E402

NAMES = sorted(RECIPES)
ROWS = load_rows()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "student")


def test_every_recipe_has_its_checkpoint():
    assert sorted(path.parent.name for path in MODELS.glob("*/config.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_small_and_complete(name):
    directory: Path = MODELS / name
    assert sum(path.stat().st_size for path in directory.iterdir()) < 2_000_000
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert "add_generation_prompt" in settings["chat_template"]
    generation = json.loads((directory / "generation_config.json").read_text())
    config = AutoConfig.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert generation["eos_token_id"] == config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_has_no_padding_rows_and_is_the_same_everywhere(name):
    vocabulary = AutoTokenizer.from_pretrained(MODELS / name).get_vocab()
    assert vocabulary == build_tokenizer().get_vocab()
    size = AutoConfig.from_pretrained(MODELS / name).vocab_size
    assert sorted(vocabulary.values()) == list(range(size))


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_every_prompt_is_known_words_with_one_marker_a_role(tokenizer, context):
    solver = Solver(MODELS / "student")
    user, turn = tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])
    for row in ROWS:
        ids = solver.prompt(row, context)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.eos_token_id not in ids
        assert ids[0] == user
        assert ids[-1] == turn
        assert ids.count(user) == ids.count(turn) == 1


def test_every_number_is_one_token(tokenizer):
    for number in range(LARGEST + 1):
        assert len(tokenizer.encode(str(number), add_special_tokens=False)) == 1


@pytest.mark.parametrize("field", ["question", "solution", "summary", "wrong_solution", "hint"])
def test_decoding_reads_like_the_text_and_encodes_to_the_same_ids(tokenizer, field):
    for row in ROWS:
        text = getattr(row, field)
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids)
        assert decoded == text.lower()
        assert tokenizer.encode(decoded, add_special_tokens=False) == ids


def test_chat_template_refuses_roles_the_models_never_saw(tokenizer):
    with pytest.raises(Exception, match="only user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "add"}], tokenize=False)


def test_only_a_finished_solution_with_the_last_answer_right_is_right():
    row = ROWS[0]
    assert right(f"so #### {row.answer}", row)
    assert not right(None, row)
    assert not right(f"#### {row.answer} wait, #### 0", row)
    assert not right(f"the answer is {row.answer}", row)


@pytest.mark.parametrize(("name", "floor"), [("teacher-strong", 0.9), ("student", 0.6)])
def test_greedy_solutions_are_mostly_right(name, floor):
    rate = success(Solver(MODELS / name), ROWS, "none", samples=1, temperature=0)
    assert rate.mean >= floor


@pytest.mark.slow
def test_success_at_the_sampling_temperature_tells_the_models_and_contexts_apart():
    def rate(name: str, context: str = "none") -> float:
        return success(Solver(MODELS / name), ROWS, context, samples=16, temperature=0.7).mean

    student = rate("student")
    assert 0.35 < student < 0.8
    assert rate("student", "solution") > student + 0.1
    assert rate("student", "answer") > student + 0.1
    assert rate("teacher-strong") > student + 0.15
