"""What a person types becomes a threat or one clear line."""

import pytest

from holdfast.core.errors import InputError
from holdfast.threats import L0, L1, L2, Corruption, Linf, Patch, Translation, parse


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("linf:8/255", Linf(8 / 255)),
        (" Linf:0.1 ", Linf(0.1)),
        ("l2:0.5", L2(0.5)),
        ("l1:12", L1(12)),
        ("l0:10", L0(10)),
        ("patch:5x5", Patch(5, 5)),
        ("patch:3", Patch(3, 3)),
        ("translation:2", Translation(2)),
        ("translation:2:cyclic", Translation(2, "cyclic")),
        ("corruption:fog:3", Corruption("fog", 3)),
    ],
)
def test_what_is_typed_is_what_is_meant(text, threat):
    assert parse(text) == threat


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown threat"),
        ("l7:3", "'l7' is not one of"),
        ("linf", "has no size"),
        ("linf:eight", "not a number"),
        ("linf:1/0", "not a number"),
        ("linf:-0.1", "positive and finite"),
        ("linf:nan", "positive and finite"),
        ("l0:2.5", "not a whole number"),
        ("patch:0x3", "at least 1x1"),
        ("patch:axb", "not a whole number"),
        ("translation:2:wrap", "unknown edge"),
        ("corruption:fog", "needs a severity"),
        ("corruption:rain:2", "unknown corruption"),
        ("corruption:fog:6", "1 to 5"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_radii_are_worded_as_the_field_writes_them():
    assert "8/255" in Linf(8 / 255).describe()
    assert "0.1" in Linf(0.1).describe()
    assert "0.2" in Linf(51 / 255).describe()
