"""The produce request that is laid out by hand is the one that aiokafka would send, byte for byte."""

import struct
from io import BytesIO

from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v7, ProduceResponse_v7

from drm_ingest.kafka.produce import ACKS_ALL, _Expected, _lay_out

TOPICS = {
    "drm.ingress": [(0, b"first batch"), (5, b""), (2, bytes(1000))],
    "drm.events.measurement": [(1, b"another")],
}


def test_the_request_is_laid_out_as_aiokafka_would() -> None:
    theirs = ProduceRequest(None, ACKS_ALL, 4000, list(TOPICS.items())).build(ProduceRequest_v7)
    message = theirs.build_request_header(77, "drm-ingest").encode() + theirs.encode()
    assert b"".join(_lay_out(TOPICS, 4000, 77, b"drm-ingest")) == struct.pack(">i", len(message)) + message


def test_the_answer_is_read_as_aiokafka_would() -> None:
    answer = ProduceResponse_v7(
        [("drm.ingress", [(0, 0, 1000, 17, 5), (5, 6, -1, -1, -1)]), ("drm.events.x", [(1, 19, -1, -1, -1)])], 0
    )
    frame = BytesIO(struct.pack(">i", 77) + answer.encode())
    assert _Expected.parse_response_header(frame).correlation_id == 77
    assert _Expected.RESPONSE_TYPE.decode(frame) == [
        ("drm.ingress", 0, 0),
        ("drm.ingress", 5, 6),
        ("drm.events.x", 1, 19),
    ]
