"""Ask a process of ours how it is."""

import http.client
import json

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 64 * 1024


def not_ready(port: int) -> str | None:
    """Return why the process on this port could not do its work now; None when it could."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        body = answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException):
        return "it does not answer yet"
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.OK:
        return None
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"it answers {answer.status}"
