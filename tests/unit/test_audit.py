"""What `make check` says of known vulnerabilities: one found fails, and what was not looked up is told."""

from tests.audit import verdict

CLEAN = {"name": "orjson", "version": "3.11.0", "vulns": []}
SKIPPED = {"name": "uvloop", "skip_reason": "Dependency not found on the index"}
FOUND = {
    "name": "websockets",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["1.1", "2.0"], "description": "…"}],
}


def test_nothing_found_among_all_is_good() -> None:
    assert verdict([CLEAN, CLEAN]) == (0, ["no known vulnerability in 2 dependencies"])


def test_a_vulnerability_fails_and_names_its_remedy() -> None:
    assert verdict([CLEAN, FOUND]) == (1, ["websockets 1.0: PYSEC-1 CVE-2, mended in 1.1, 2.0"])


def test_what_was_not_looked_up_is_never_called_good() -> None:
    code, [said] = verdict([SKIPPED, SKIPPED])
    assert code == 0
    assert said.startswith("DEPENDENCIES NOT AUDITED: 2 of 2")


def test_a_vulnerability_fails_even_where_others_were_not_looked_up() -> None:
    code, said = verdict([SKIPPED, FOUND])
    assert (code, len(said)) == (1, 2)
