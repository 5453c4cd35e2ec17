"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from covey_hil.testing.postgresql import MissingError, cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL of our own; each test makes a database in it with `new_database`."""
    try:
        with cluster() as url:
            yield url
    except MissingError as error:
        pytest.skip(str(error))
