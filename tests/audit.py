"""Ask whether a vulnerability is known in what requirements.txt pins: `python -m tests.audit`, a part of `make check`.

Exits 1 for a vulnerability. Where the service cannot be reached, or does not know a package (pip-audit calls that
"no known vulnerabilities found"), it says so in capitals and exits 0: no network is no reason for a red check.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
TIMEOUT_S = 120
REQUEST_TIMEOUT_S = 10


def audit() -> tuple[int, list[str]]:
    """Return the exit code and what to say."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(REQUIREMENTS),
            "--timeout", str(REQUEST_TIMEOUT_S), "--progress-spinner", "off", "--format", "json",
            "--output", str(report),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return 0, [f"DEPENDENCIES NOT AUDITED: no answer within {TIMEOUT_S} s"]
        if not report.exists() or not report.read_text():
            return 0, [
                f"DEPENDENCIES NOT AUDITED: {(done.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1]}"
            ]
        return verdict(json.loads(report.read_text())["dependencies"])


def verdict(dependencies: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit code and what to say of a report in pip-audit's JSON."""
    dependencies = list(dependencies)
    said = [
        f"{found['name']} {found['version']}: {vulnerability['id']} {' '.join(vulnerability.get('aliases', []))}, "
        f"mended in {', '.join(vulnerability.get('fix_versions', [])) or 'no release yet'}"
        for found in dependencies
        for vulnerability in found.get("vulns", [])
    ]
    code = 1 if said else 0
    if skipped := [found for found in dependencies if "skip_reason" in found]:
        said.append(
            f"DEPENDENCIES NOT AUDITED: {len(skipped)} of {len(dependencies)}, for one: {skipped[0]['skip_reason']}"
        )
    elif not said:
        said.append(f"no known vulnerability in {len(dependencies)} dependencies")
    return code, said


if __name__ == "__main__":
    exit_code, lines = audit()
    print("\n".join(lines))
    sys.exit(exit_code)
