"""Every Python block of the guides runs as it stands."""

import re
from pathlib import Path

import pytest

GUIDES = sorted((Path(__file__).parents[2] / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(guide):
    blocks = BLOCK.findall(guide.read_text())
    assert blocks, f"{guide.name} shows no code"
    namespace = {"__name__": guide.stem}
    for block in blocks:
        exec(compile(block, guide.name, "exec"), namespace)
