"""A tokenizer for the tests of tools/demo_model: the real recipe on fewer documents."""

import pytest

from tools.demo_model.tokenizer import train_tokenizer, wrap


@pytest.fixture(scope="session")
def small_tokenizer():
    return wrap(train_tokenizer(documents=2000))
