"""The handwritten wire format agrees with the generated classes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_ray.errors import MalformedError
from aurora_ray.log import wire
from aurora_ray.storage.v1 import storage_pb2 as pb

BATCHES = st.lists(st.binary(max_size=300), max_size=5)
LSNS = st.integers(0, (1 << 64) - 1)


@given(BATCHES)
def test_append_requests(batches):
    message = pb.AppendRequest(batches=batches).SerializeToString()
    assert wire.join_append(batches) == message
    assert wire.split_append(message) == batches


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.data())
def test_a_cut_append_request_is_refused_or_shorter(batches, data):
    message = wire.join_append(batches)
    cut = message[: data.draw(st.integers(0, len(message) - 1))]
    with contextlib.suppress(MalformedError):
        assert len(wire.split_append(cut)) < len(batches)


def test_an_unknown_field_is_refused():
    with pytest.raises(MalformedError):
        wire.split_append(b"\x12\x01x")


@given(LSNS)
def test_append_replies(lsn):
    for subscribed in (False, True):
        reply = pb.AppendReply.FromString(wire.append_reply(lsn, subscribed=subscribed))
        assert (reply.acked_lsn, reply.subscribed) == (lsn, subscribed)


@given(BATCHES, LSNS)
def test_log_chunks(batches, vdl):
    chunk = pb.LogChunk.FromString(wire.log_chunk(batches, vdl))
    assert (list(chunk.batches), chunk.vdl) == (batches, vdl)
