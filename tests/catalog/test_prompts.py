"""From messages to the prompts that models get."""

from __future__ import annotations

import pytest
from tokenizers import processors
from unmask_server.catalog.chat import render_chat
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.prompting import choose_prompting, render_prompt
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.types import Prompting, PromptStyle

from tests.tiny import byte_bpe


def with_bos(chat_template: str | None) -> ModelTokenizer:
    backend = byte_bpe()
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return ModelTokenizer(backend, {"bos_token": "<|begin|>"}, chat_template)


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


def test_a_raw_prompt_gets_what_the_tokenizer_puts_before_every_text() -> None:
    tokenizer = with_bos(None)
    prompt = render_prompt(Prompting(PromptStyle.RAW, "Q: {{ content }}\nA:"), tokenizer, "2+2?")
    assert prompt.text == "Q: 2+2?\nA:"
    assert prompt.tokens == tokenizer.encode(prompt.text, add_special_tokens=True)
    without = ModelTokenizer(byte_bpe(), {"bos_token": "<|begin|>"}, None)
    assert render_prompt(Prompting(PromptStyle.RAW), without, "2").tokens == without.encode("2")


def test_an_end_token_that_a_tokenizer_would_add_is_left_out() -> None:
    backend = byte_bpe()
    ids = {name: backend.token_to_id(name) for name in ("<|begin|>", "<eos>")}
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <eos>", special_tokens=list(ids.items())
    )
    tokenizer = ModelTokenizer(backend, {}, None)
    prompt = render_prompt(Prompting(PromptStyle.RAW), tokenizer, "2")
    assert prompt.tokens == (ids["<|begin|>"], *tokenizer.encode("2"))


def test_student_and_teacher_each_get_their_own_template() -> None:
    student = ModelTokenizer(byte_bpe(), {}, None)
    teacher = ModelTokenizer(
        byte_bpe(),
        {},
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    plain = Prompting(PromptStyle.RAW, "User: {{ content }}\n\nAssistant:")
    assert render_prompt(plain, student, "2+2?").text == "User: 2+2?\n\nAssistant:"
    assert render_prompt(Prompting(PromptStyle.CHAT), teacher, "2+2?").text == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{%- for m in messages %}\n    {{- m.content }}\n{%- endfor %}", "<q>"),
        ("  {% if true %}\nx{% endif %}\n", "x"),
        ("{% for m in messages %}{% break %}{% endfor %}x", "x"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<q>"}]'),
        ("{{ messages[0].content }}{% generation %}a{% endgeneration %}", "<q>a"),
        ("{{ nothing_there }}{% if tools %}no{% endif %}x", "x"),
        ("{{ eos_token }}{{ bos_token }}", "<eos><|begin|>"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
    ],
)
def test_chat_templates_mean_what_they_mean_in_transformers(template: str, text: str) -> None:
    special = {"bos_token": "<|begin|>", "eos_token": "<eos>"}
    assert render_chat(template, "<q>", special) == text


@pytest.mark.parametrize("template", ["{{ messages", "{{ raise_exception('only tools') }}"])
def test_a_chat_template_that_fails_is_told(template: str) -> None:
    with pytest.raises(InvalidArgument, match="chat_template"):
        render_chat(template, "q", {})


def test_a_prompt_does_not_change_with_the_day() -> None:
    tokenizer = ModelTokenizer(byte_bpe(), {}, "{{ strftime_now('%Y') }}{{ messages[0].content }}")
    assert "date" in render_prompt(Prompting(PromptStyle.CHAT), tokenizer, "q").warnings[0]
