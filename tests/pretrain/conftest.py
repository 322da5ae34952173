"""Eight people, rendered, and examples of every kind made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zeroshift.pretrain import dataset, guides
from zeroshift.pretrain.guides import Examples


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the renders of eight people of the training stream."""
    folder = tmp_path_factory.mktemp("renders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD", 8)
        yield folder


@pytest.fixture(scope="module")
def people(renders: Path) -> dataset.People:
    """These people."""
    return dataset.load(renders, 1, 1)


@pytest.fixture
def examples(people: dataset.People) -> Examples:
    """Examples of every kind."""
    drawn = guides.draw_examples(people, 24, 1, 3, hard=True)
    assert 0 < float(drawn.pure.sum()) < 24 and 0 < float(drawn.readable.sum()) < 24
    return drawn
