"""The tokenizer that all the models share: whole words, numbers, punctuation.

Upper case is folded. Ids run from 0 to V-1 and every id has a token.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from examples.word_problems import problems, solutions
from examples.word_problems.contexts import CONTEXTS

PAD, UNK, EOS, USER, ASSISTANT = "<pad>", "<unk>", "<eos>", "<user>", "<assistant>"
SPECIAL = (PAD, UNK, EOS, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}<user>{{ message.content }}"
    "{%- elif message.role == 'assistant' -%}<assistant>{{ message.content }}<eos>"
    "{%- else -%}{{ raise_exception('only user and assistant messages are known') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
"""One marker a message; no BOS, since ``<user>`` always comes first."""

_WORD = r"####|\w+|[^\w\s]"


def words() -> list[str]:
    """All ordinary tokens: punctuation, numbers 0..LARGEST, then words in alphabetical order."""
    texts = [
        *problems.NAMES,
        *problems.NAMES.values(),
        *problems.ITEMS,
        *problems.GAINS,
        *problems.LOSSES,
        *(re.sub(r"\{.*?\}", " ", ending) for ending in problems.ENDINGS),
        "has bags with each so",
        *solutions.OPENERS,
        *(word for words in problems.LABELS.values() for word in words),
        *solutions.CONCLUSIONS,
        "hmm wait",
        *(re.sub(r"\{\{.*?\}\}", " ", template) for template in CONTEXTS.values()),
    ]
    found = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    numbers = [str(number) for number in range(problems.LARGEST + 1)]
    return [".", ",", "?", ":", "=", "+", "-", "*", "####", *numbers, *sorted(found)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer with its chat template.

    Decoding puts spaces between words and none before ``. , ?``; encoding its output gives the
    same ids again.
    """
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words()])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    # The prefix marks tokens to glue to the one before; none here begins with it.
    backend.decoder = decoders.WordPiece(prefix="\u2581", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
