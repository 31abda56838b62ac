"""Tokenizers: text and ids, and whether two are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.tokenizer import ModelTokenizer, check_token_ids

from tests.tiny import byte_bpe, sentence_piece, word_level


def byte_fallback() -> Tokenizer:
    """Llama-2-like: SentencePiece pieces, and bytes for what has none."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "ab", "é", "."]
    backend = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


TOKENIZERS = {
    make.__name__: ModelTokenizer(make(), {}, None)
    for make in (word_level, byte_bpe, sentence_piece, byte_fallback)
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_texts_of_tokens_put_together_are_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("The correct answer is 12. A solution: 3 é ☃ so")
    assert "".join(tokenizer.token_texts(ids)) == tokenizer.decode(ids)
    assert len(tokenizer.token_texts(ids)) == len(ids)


@pytest.mark.parametrize("name", ["byte_bpe", "byte_fallback"])
@settings(max_examples=200)
@given(text=st.text(max_size=30))
def test_characters_of_several_tokens_are_the_last_ones(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    texts = tokenizer.token_texts(ids)
    assert "".join(texts) == tokenizer.decode(ids)


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 299), max_size=40))
@example(ids=[96] * 8 + [128, 96])
def test_any_ids_have_texts(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["byte_bpe"]
    ids = [i for i in ids if tokenizer.has(i)]
    texts = tokenizer.token_texts(ids)
    assert len(texts) == len(ids)
    # Bytes that are no character may be cut otherwise, but every letter is there.
    assert "".join(texts).replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


def test_a_token_on_its_own_reads_as_what_it_adds() -> None:
    bpe = TOKENIZERS["byte_bpe"]
    assert bpe.token_text(bpe.encode("a")[0]) == "a"
    assert bpe.token_text(bpe.encode(" ☃")[-1]) == "<0x83>"
    assert bpe.token_text(bpe.encode("<eos>")[0]) == "<eos>"
    pieces = TOKENIZERS["byte_fallback"]
    assert [pieces.token_text(i) for i in pieces.encode("a ab")] == [" a", " a", "b"]
    assert pieces.token_text(3 + 0xE2) == "<0xE2>"
    assert pieces.token_text(1) == "<s>"


def test_what_is_decoded_is_not_always_what_was_encoded() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.decoder = decoders.Fuse()
    tokenizer = ModelTokenizer(backend, {}, None)
    assert tokenizer.decode((0, 1)) == "ab"
    assert tokenizer.encode("ab") == (2,)
    assert tokenizer.token_texts((0, 1)) == ["a", "b"]


def test_ids_are_checked_against_model_and_tokenizer() -> None:
    tokenizer = TOKENIZERS["word_level"]
    top = tokenizer.limit
    check_token_ids("ids", [0, top - 1], top + 3, tokenizer)
    for bad, place in (
        ([3, -1], 1),
        ([3, top + 3], 1),
        ([2**31], 0),
        ([0, top], 1),
        ([True], 0),
        ([1.0], 0),
        (["1"], 0),
    ):
        with pytest.raises(InvalidArgument) as caught:
            check_token_ids("ids", bad, top + 3, tokenizer)  # type: ignore[arg-type]
        assert caught.value.field == f"ids[{place}]"
        assert str(bad[place]) in caught.value.description


def test_special_tokens_above_the_base_vocabulary_are_tokens() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    assert backend.get_vocab_size(with_added_tokens=False) == 2
    tokenizer = ModelTokenizer(backend, {}, None)
    check_token_ids("ids", [2, 3], 8, tokenizer)
    with pytest.raises(InvalidArgument, match="no token"):
        check_token_ids("ids", [4], 8, tokenizer)


def test_tokenizers_are_compared_id_by_id() -> None:
    mine = TOKENIZERS["word_level"]
    assert mine.differences(ModelTokenizer(word_level(), {}, None)) == []
    other = mine.differences(TOKENIZERS["byte_bpe"])
    assert len(other) == 5
    assert other[0].startswith("id 0 is '<eos>' here and '<|begin|>' there")
    longer = word_level()
    longer.add_tokens(["one more"])
    assert mine.differences(ModelTokenizer(longer, {}, None)) == [
        "id 21 is no token here and 'one more' there"
    ]


def test_identity_is_all_that_decides_a_prompt() -> None:
    base = ModelTokenizer(word_level(), {}, "a")
    assert base.identity == ModelTokenizer(word_level(), {}, "a").identity
    lowered = word_level()
    lowered.normalizer = normalizers.Lowercase()
    others = [
        ModelTokenizer(word_level(), {}, "b"),
        ModelTokenizer(word_level(), {"bos_token": "<eos>"}, "a"),
        ModelTokenizer(lowered, {}, "a"),
    ]
    assert len({base.identity, *(other.identity for other in others)}) == 4
    assert {other.fingerprint for other in others} == {base.fingerprint}


def test_nothing_is_cut_whatever_the_file_says() -> None:
    backend = word_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    assert len(ModelTokenizer(backend, {}, None).encode("a a a a")) == 4


def test_text_that_has_no_tokens_is_told() -> None:
    deaf = ModelTokenizer(Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<unk>")), {}, None)
    assert deaf.encode("<eos>") == (0,)
    with pytest.raises(InvalidArgument, match="cannot be tokenised"):
        deaf.encode("unheard")


def saved(folder: Path, config: object, chat_file: str | None = None) -> ModelTokenizer:
    word_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if chat_file is not None:
        (folder / "chat_template.jinja").write_text(chat_file)
    return ModelTokenizer.load(folder, "model")


def test_the_chat_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    assert saved(tmp_path, {}).chat_template is None
    assert saved(tmp_path, {"chat_template": "one"}).chat_template == "one"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert saved(tmp_path, {"chat_template": several}).chat_template == "d"
    assert saved(tmp_path, {"chat_template": "one"}, "file").chat_template == "file"


def test_special_tokens_are_found_as_text_or_as_object(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<eos>"}}')
    tokenizer = saved(tmp_path, {"eos_token": "<eos>"})
    assert (tokenizer.special("bos_token"), tokenizer.special("eos_token")) == ("<eos>", "<eos>")
    assert tokenizer.bos_id == 0
    assert tokenizer.special("pad_token") is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", "[]"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "tool_use", "template": "t"}]}',
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    tmp_path: Path, file: str, content: str
) -> None:
    saved(tmp_path, {})
    (tmp_path / file).write_text(content)
    with pytest.raises(InvalidArgument, match=r"^model: "):
        ModelTokenizer.load(tmp_path, "model")
