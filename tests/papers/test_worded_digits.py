"""The model of worded digits: what prompts hold, that images follow the sampler, and when forgetting ends."""

import torch

from holdfast.papers.worded_digits import (
    DIGITS,
    PER_DIGIT,
    VOCABULARY,
    WordedDenoiser,
    drawn,
    forgetting,
    prompts,
    starts,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_prompt_names_its_digit_once_among_fillers():
    digits = torch.arange(DIGITS).repeat(30)
    words = prompts(digits, 4, generator())
    named = words < PER_DIGIT * DIGITS
    assert (named.sum(1) == 1).all()
    assert torch.equal(words[named] // PER_DIGIT, digits)
    assert len((words[named] % PER_DIGIT).unique()) == PER_DIGIT
    assert int(words.max()) < VOCABULARY
    plain = prompts(digits, 4, generator(), word_only=True)
    assert torch.equal(plain[plain < PER_DIGIT * DIGITS], PER_DIGIT * digits)


def test_a_model_that_predicts_no_noise_draws_its_start_at_full_contrast():
    model = WordedDenoiser(generator())  # its last layer starts at zero
    words, noise = prompts(torch.arange(3), 3, generator()), starts(3, generator(1))
    pictures = drawn(model, words, noise)
    assert pictures.shape == (3, 1, 8, 8)
    assert torch.equal(pictures.sign(), noise.sign())


def test_forgetting_ends_when_the_digit_is_gone_and_changes_the_reading_only():
    model = WordedDenoiser(generator())
    asked = []

    def shows(pictures):
        asked.append(len(pictures))
        return torch.full((len(pictures),), len(asked) < 3)

    forgot = forgetting(model, 4, 0, shows)
    assert asked == [20, 20, 20]
    before, after = model.net.state_dict(), forgot.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(forgot.table, model.table)
