"""What a user agent string tells: the app or browser, its version, the system and the device it runs on."""

from functools import lru_cache

from ua_parser import Matchers, Parser, load_lazy_builtins
from ua_parser.regex import Resolver

from drm_ingest.pipeline.splice import fragment

CHARACTERS_MAX = 500
"""The rest of a longer string is not looked at; real ones end well before."""


class UserAgents:
    """Parses user agents; the most recent answers are remembered."""

    def __init__(self, remembered_max: int) -> None:
        matchers: Matchers = load_lazy_builtins()
        parser = Parser(Resolver(matchers))

        def attributes(user_agent: str) -> bytes:
            found = parser.parse(user_agent[:CHARACTERS_MAX])
            app, system, device = found.user_agent, found.os, found.device
            return fragment(
                useragentfamily=app and app.family,
                useragentversion=app and (_version(app.major, app.minor, app.patch) or None),
                useragentos=system and " ".join((system.family, _version(system.major, system.minor))).rstrip(),
                useragentdevice=device and device.family,
            )

        self.attributes = lru_cache(remembered_max)(attributes)
        """The attributes of an event sent by this user agent; those that nothing is known of are left out."""


def _version(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)
