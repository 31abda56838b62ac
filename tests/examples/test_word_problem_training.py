"""The optimiser and the training examples."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from examples.word_problems.data import IGNORED, Example, ExampleSource, collate  # noqa: E402
from examples.word_problems.optimiser import Optimiser, orthogonalise  # noqa: E402
from examples.word_problems.recipes import RECIPES  # noqa: E402
from examples.word_problems.train import (  # noqa: E402
    build_model,
    drill_share,
    rate_factor,
    save,
    train,
)
from examples.word_problems.vocabulary import build_tokenizer  # noqa: E402


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalise_brings_all_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices, iterations=8))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_optimiser_lowers_a_loss_and_clears_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    inputs = torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 4)
    optimiser = Optimiser(model)
    losses = []
    for _ in range(50):
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimiser.step(1.0)
        losses.append(loss.item())
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert losses[-1] < losses[0] / 2


def test_loss_counts_only_the_solution():
    tokenizer = build_tokenizer()
    source = ExampleSource(RECIPES["student"], tokenizer.backend_tokenizer, frozenset())
    turn = tokenizer.convert_tokens_to_ids("<assistant>")
    for _ in range(100):
        example = source.draw(drills=0.2)
        start = example.ids.index(turn) + 1
        assert example.labels[:start] == [IGNORED] * start
        assert example.labels[start:] == example.ids[start:]
        assert example.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in example.ids


def test_strong_teacher_reads_slips_but_never_learns_to_write_them():
    recipe = RECIPES["teacher-strong"]
    tokenizer = build_tokenizer()
    only_exposure = replace(recipe, exposure=replace(recipe.exposure, share=1.0))
    source = ExampleSource(only_exposure, tokenizer.backend_tokenizer, frozenset())
    hmm, wait = tokenizer.convert_tokens_to_ids(["hmm", "wait"])
    examples = [source.draw(drills=0.0) for _ in range(300)]
    assert any(hmm in example.ids for example in examples)
    assert not any(hmm in example.labels for example in examples)
    assert any(wait in example.labels for example in examples)


def test_collate_pads_on_the_right_with_nothing_to_learn():
    ids, labels = collate([Example([3, 4], [IGNORED, 4]), Example([5], [5])], pad=0)
    assert ids.tolist() == [[3, 4], [5, 0]]
    assert labels.tolist() == [[IGNORED, 4], [5, IGNORED]]


def test_schedules_stay_in_range():
    assert [drill_share(p) for p in (0.0, 1.0)] == pytest.approx([0.5, 0.1])
    factors = [rate_factor(step, 200) for step in range(200)]
    assert max(factors) == 1.0
    assert min(factors) > 0.0
    assert factors[-1] < 0.05


def test_training_is_repeatable_and_its_checkpoint_loads(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny = replace(
        RECIPES["student"], hidden=32, intermediate=32, layers=1, heads=2, steps=8, batch=4
    )
    tokenizer = build_tokenizer()
    first, second = train(tiny, tokenizer), train(tiny, tokenizer)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    torch.manual_seed(tiny.seed)
    untrained = build_model(tiny, tokenizer)
    assert not torch.allclose(first.lm_head.weight, untrained.lm_head.weight, atol=1e-3)
    save(first, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(tokenizer)
