"""What the tests of recipes share."""

import pytest

from tokenscale.recipe import Recipe


@pytest.fixture
def load(tmp_path):
    """Reads a recipe text as the file r.yaml, with arguments."""

    def load(text, *arguments):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Recipe.load(path, arguments)

    return load
