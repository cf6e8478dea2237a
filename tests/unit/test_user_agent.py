import orjson
import pytest

from drm_ingest.pipeline.enrich.user_agent import CHARACTERS_MAX, UserAgents


@pytest.fixture(scope="module")
def user_agents() -> UserAgents:
    return UserAgents(100)


def known(user_agents: UserAgents, user_agent: str) -> dict[str, str]:
    attributes: dict[str, str] = orjson.loads(b'{"x":1' + user_agents.attributes(user_agent) + b"}")
    attributes.pop("x")
    return attributes


def test_a_browser_on_a_phone_is_known(user_agents: UserAgents) -> None:
    safari = (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/17.5 Mobile/15E148 Safari/604.1"
    )
    assert known(user_agents, safari) == {
        "useragentfamily": "Mobile Safari",
        "useragentversion": "17.5",
        "useragentos": "iOS 17.5",
        "useragentdevice": "iPhone",
    }


def test_an_app_that_names_itself_is_known(user_agents: UserAgents) -> None:
    assert known(user_agents, "HomeApp/3.2.1 CFNetwork/1494.0.7 Darwin/23.4.0") == {
        "useragentfamily": "HomeApp",
        "useragentversion": "3.2.1",
        "useragentos": "iOS 17.4",
        "useragentdevice": "iOS-Device",
    }


@pytest.mark.parametrize("unknown", ["", "x", '"}\\', "\x00", "é" * 100_000, "(" * 100_000])
def test_of_an_unknown_one_nothing_is_said(user_agents: UserAgents, unknown: str) -> None:
    assert known(user_agents, unknown) == {}


def test_only_the_beginning_of_a_very_long_one_is_looked_at(user_agents: UserAgents) -> None:
    assert known(user_agents, "x" * CHARACTERS_MAX + " okhttp/4.9.0") == {}
    assert known(user_agents, "okhttp/4.9.0 " + "x" * 1_000_000)["useragentfamily"] == "okhttp"
