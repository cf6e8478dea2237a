"""The commands of docs/api.md, pasted into a shell in their order, answer what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.adversity.running import Running

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "api.md"
CREDENTIALS = DOCS / "credentials.md"
COMMANDS = re.compile(r"```sh\n(?P<commands>.*?)```(?:\n```json\n(?P<answer>.*?)```)?", re.DOTALL)
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OF_THIS_RUN = {
    "created_at",
    "recorded_at",
    "received_at",
    "linked_at",
    "read_at",
    "attached_at",
    "request_id",
    "next",
    "number",
}
"""Other ones each time."""
ELIDED = "…"
END = "-- end of block --"


def test_the_commands_of_the_api_tour_run_as_they_stand_and_answer_what_it_says(path: Running, tmp_path: Path) -> None:
    (tmp_path / ".drm").symlink_to(path.ready_file.parent / "data")
    blocks = list(COMMANDS.finditer(PAGE.read_text()))
    script = "".join(f"{block['commands']}\necho '{END}'\n" for block in blocks)
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    done = subprocess.run(
        ["/bin/sh"], input=script, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    outputs = done.stdout.split(f"{END}\n")[:-1]
    assert len(outputs) == len(blocks)
    same: dict[str, str] = {}
    compared = 0
    for block, output in zip(blocks, outputs, strict=True):
        answers = [json.loads(line) for line in output.splitlines() if line]
        if block["answer"] is not None:
            difference = differs(json.loads(block["answer"]), answers[-1], same)
            assert difference is None, f"{block['commands']}answers {answers[-1]},\ndiffers at {difference}"
            compared += 1
    assert compared == sum(block["answer"] is not None for block in blocks) >= 8
    [made] = [output for block, output in zip(blocks, outputs, strict=True) if "$sender/keys" in block["commands"]]
    assert json.loads(made.splitlines()[-1])["key"].startswith("drm_")


def test_the_commands_and_the_snippet_about_credentials_make_tokens_that_get_in(path: Running, tmp_path: Path) -> None:
    (tmp_path / ".drm").symlink_to(path.ready_file.parent / "data")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    text = CREDENTIALS.read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "make_token.py").write_text(snippet)
    # What the page makes with the tool is made with the snippet too, and sent the same way.
    script = "".join(f"{block['commands']}\necho '{END}'\n" for block in COMMANDS.finditer(text)) + (
        'kid=$(ask $DRM_SERVE_URL/v1/senders/$sender/fleet-keys | sed -n \'s/.*"kid":"\\([^"]*\\)".*/\\1/p\')\n'
        "token=$(.venv/bin/python make_token.py fleet.pem $kid meter-8)\n"
        'curl -sS $DRM_EDGE_URL/v1/events -H "Authorization: Bearer $token" -H "content-type: application/json" '
        '-d \'[{"type": "device.measurement", "id": "t-2", "data": {"temperature": 21.5}}]\'\n'
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    done = subprocess.run(
        ["/bin/sh"], input=script, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=90, check=True
    )
    _, registered, sent, scoped, revoked, found, by_snippet = done.stdout.split(f"{END}\n")
    assert json.loads(registered)["algorithm"] == "EdDSA"
    assert (json.loads(sent)["accepted"], json.loads(sent)["results"]) == (1, [])
    assert json.loads(scoped)["scope"]["devices"] == ["meter-*", "pump-1"]
    listed, answer = map(json.loads, revoked.splitlines())
    assert (len(listed["items"]), answer) == (2, {"revoked": 1})
    [by_prefix] = json.loads(found)["items"]
    assert (by_prefix["sender_name"], by_prefix["id"]) == ("meter fleet", listed["items"][1]["id"])
    assert by_prefix["revoked_at"]
    assert json.loads(by_snippet)["accepted"] == 1


def test_the_client_of_the_websocket_page_runs_as_it_stands_beside_an_up(path: Running, tmp_path: Path) -> None:
    (tmp_path / ".drm").symlink_to(path.ready_file.parent / "data")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    text = (DOCS / "websocket.md").read_text()
    [client] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [command] = re.findall(r"`(set -a;[^`]*)`", text)
    [printed] = re.findall(r"It prints `([^`]*)`", text)
    (tmp_path / "client.py").write_text(client)
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (f"{printed}\n", "")


def differs(said: Any, answered: Any, same: dict[str, str], at: str = "") -> str | None:
    """Return where an answer is not what the page says; ids may be others, if they are so throughout (`same`)."""
    if isinstance(said, dict) and isinstance(answered, dict):
        if said.keys() - {ELIDED} != answered.keys() and not (
            ELIDED in said and said.keys() - {ELIDED} <= answered.keys()
        ):
            return f"{at}: {sorted(said)} and not {sorted(answered)}"
        pairs = [(f"{at}/{name}", said[name], answered[name]) for name in said if name not in {ELIDED, *OF_THIS_RUN}]
    elif isinstance(said, list) and isinstance(answered, list) and len(said) == len(answered):
        pairs = [(f"{at}/{number}", *both) for number, both in enumerate(zip(said, answered, strict=True))]
    elif isinstance(said, str) and isinstance(answered, str):
        ids = UUID.findall(said), UUID.findall(answered)
        equal = UUID.sub("", said) == UUID.sub("", answered) and len(ids[0]) == len(ids[1])
        return None if equal and all(same.setdefault(*both) == both[1] for both in zip(*ids, strict=True)) else at
    else:
        return None if said == answered else at
    return next((found for pair in pairs if (found := differs(*pair[1:], same, pair[0])) is not None), None)
