"""From questions to what models read."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.prompting import choose_prompting, render_prompt
from unmask_server.catalog.templates import context_template, render_context
from unmask_server.catalog.tokenizer import ModelTokenizer, check_token_ids
from unmask_server.catalog.types import Prompting, PromptStyle

from tests.tiny import byte_bpe, sentence_piece, word_level

FIELDS = {"question": "2+2?", "answer": "4", "solution": [{"role": "assistant", "content": "42"}]}


def with_bos(chat_template: str | None) -> ModelTokenizer:
    backend = byte_bpe()
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return ModelTokenizer(backend, {"bos_token": "<|begin|>"}, chat_template)


def test_a_built_in_context_shows_the_field_it_is_named_for() -> None:
    template = context_template("answer", None, "context")
    shown = render_context(template, FIELDS, question_id="que-1")
    assert shown == "2+2?\nThe correct answer is 4."


def test_messages_are_shown_as_their_contents() -> None:
    template = context_template("solution", None, "context")
    shown = render_context(template, FIELDS, question_id="que-1")
    assert shown.endswith("42")
    assert "role" not in shown


def test_a_context_whose_field_the_question_lacks_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"que-1 has no field 'hint'"):
        render_context(context_template("hint", None, "context"), FIELDS, question_id="que-1")


@pytest.mark.parametrize(("name", "template"), [("nope", None), ("mine", "{{ question")])
def test_a_context_that_is_none_is_refused(name: str, template: str | None) -> None:
    with pytest.raises(InvalidArgument):
        context_template(name, template, "context")


def test_templates_cannot_reach_the_server() -> None:
    with pytest.raises(InvalidArgument):
        render_context(
            "{{ question.__class__.__mro__[1].__subclasses__() }}", FIELDS, question_id="que-1"
        )


def test_exactly_one_bos_whoever_writes_it() -> None:
    bos = with_bos(None).bos_id
    assert bos is not None
    for tokenizer, prompting in (
        (with_bos(None), Prompting(PromptStyle.RAW)),
        (with_bos(None), Prompting(PromptStyle.RAW, "<|begin|>{{ content }}")),
        (
            with_bos("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"),
            Prompting(PromptStyle.CHAT),
        ),
    ):
        prompt = render_prompt(prompting, tokenizer, "2+2?")
        assert prompt.tokens.count(bos) == 1
        assert prompt.tokens[0] == bos


def test_a_chat_template_that_forgets_bos_or_writes_two_is_told() -> None:
    silent = with_bos("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert render_prompt(Prompting(PromptStyle.CHAT), silent, "q").warnings
    twice = with_bos("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}")
    assert render_prompt(Prompting(PromptStyle.CHAT), twice, "q").warnings


def test_prompting_defaults_to_the_chat_template_where_there_is_one() -> None:
    chat = choose_prompting(None, with_bos("{{ messages[0].content }}"), "prompting")
    assert chat.style is PromptStyle.CHAT
    assert choose_prompting(None, with_bos(None), "prompting").style is PromptStyle.RAW
    with pytest.raises(InvalidArgument):
        choose_prompting(Prompting(PromptStyle.CHAT), with_bos(None), "prompting")
    with pytest.raises(InvalidArgument):
        choose_prompting(Prompting(PromptStyle.RAW, "no message"), with_bos(None), "prompting")


def test_what_is_decoded_is_not_always_what_was_encoded() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer = ModelTokenizer(backend, {}, None)
    assert "".join(tokenizer.token_texts((0, 1))).replace(" ", "") == "ab"
    assert tokenizer.encode("ab") == (2,)


@pytest.mark.parametrize("make", [word_level, byte_bpe, sentence_piece])
def test_the_texts_of_tokens_put_together_are_the_text(make: object) -> None:
    tokenizer = ModelTokenizer(make(), {}, None)  # type: ignore[operator]
    ids = tokenizer.encode("The correct answer is 12. A solution: 3 é ☃ so")
    assert "".join(tokenizer.token_texts(ids)) == tokenizer.decode(ids)
    assert len(tokenizer.token_texts(ids)) == len(ids)


def test_ids_are_checked_against_model_and_tokenizer() -> None:
    tokenizer = ModelTokenizer(word_level(), {}, None)
    top = tokenizer.limit
    check_token_ids("ids", [0, top - 1], top + 3, tokenizer)
    for bad, place in (([3, -1], 1), ([3, top + 3], 1), ([2**31], 0), ([0, top], 1), ([True], 0)):
        with pytest.raises(InvalidArgument) as caught:
            check_token_ids("ids", bad, top + 3, tokenizer)
        assert caught.value.field == f"ids[{place}]"


def test_special_tokens_above_the_base_vocabulary_are_tokens() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = ModelTokenizer(backend, {}, None)
    check_token_ids("ids", [2, 3], 8, tokenizer)
    with pytest.raises(InvalidArgument, match="no token"):
        check_token_ids("ids", [4], 8, tokenizer)


def test_tokenizers_are_compared_id_by_id() -> None:
    mine = ModelTokenizer(word_level(), {}, None)
    assert mine.differences(ModelTokenizer(word_level(), {}, None)) == []
    other = mine.differences(ModelTokenizer(byte_bpe(), {}, None))
    assert len(other) == 5
    assert other[0].startswith("id 0 is '<eos>' here and '<|begin|>' there")
