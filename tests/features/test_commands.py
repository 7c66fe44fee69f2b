"""What is said to Redis is what its own packer would say."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.features.commands import hmgets, pack

WORDS = st.lists(st.binary(max_size=20), min_size=1, max_size=5)


@given(keys=WORDS, fields=WORDS)
def test_many_hmgets_of_the_same_fields_are_packed_as_each_alone(keys, fields):
    assert hmgets(keys, fields) == [pack(b"HMGET", key, *fields) for key in keys]
    assert hmgets([], fields) == []
