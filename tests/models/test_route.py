"""Test the routes that are configured in Traefik: authentication, redirects, hidden paths, and dropped headers."""

from typing import Any, cast

import pytest

from components.route import htpasswd_line, labels, routes
from settings.ingress import Route
from settings.parsing import parse_settings
from settings.traefik import SINGLE_SIGN_ON, Authentication

NAME = "mlflow-prod-server"
EXISTING = {
    "mode": "existing",
    "certResolver": "cloudflare",
    "middlewares": ["secureHeaders@docker"],
}
BUNDLED = {"mode": "bundled", "bindAddress": "0.0.0.0"}
SSO: dict[str, dict[str, object]] = {
    "existing": {"singleSignOn": "authelia@docker", "middlewares": ["authelia@docker", "secureHeaders@docker"]},
    "bundled": {"forwardAuth": "http://authelia:9091/api/authz/forward-auth"},
}
ASK_FOR_SSO = {"authelia@docker", f"{NAME}-sso"}
USERS = {"usersFile": "/run/secrets/users"}


def a_route(traefik: dict[str, Any], authentication: str, **more: object) -> Route:
    sso = SSO[traefik["mode"]] if authentication in SINGLE_SIGN_ON else {}
    values = {"hostname": "m.example.com", "authentication": authentication, "traefik": traefik | sso} | more
    return parse_settings(values).route


def made(traefik: dict[str, Any], authentication: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the routers and the middlewares."""
    http = routes(a_route(traefik, authentication), name=NAME, users=USERS)["http"]
    return http["routers"], http["middlewares"]


def rendered(traefik: dict[str, Any], authentication: str) -> dict[str, Any]:
    found = labels(a_route(traefik, authentication), name=NAME, port=5000, network="shared-network", password=None)
    return cast("dict[str, Any]", found)


@pytest.mark.parametrize("traefik", [EXISTING, BUNDLED], ids=["existing", "bundled"])
@pytest.mark.parametrize("authentication", ["password", "singleSignOn", "singleSignOnAndPassword"])
def test_every_router_requires_authentication(traefik: dict[str, Any], authentication: Authentication) -> None:
    routers, middlewares = made(traefik, authentication)
    for name, router in routers.items():
        asking = {f"{NAME}-password", *ASK_FOR_SSO} & set(router["middlewares"])
        assert len(asking) == 1, (name, router)
        for own in (entry for entry in router["middlewares"] if "@" not in entry):
            assert own in middlewares, (name, own)


EVERY = ["anonymous", "password", "mlflow", "singleSignOn", "singleSignOnAndPassword"]
BOTH = pytest.mark.parametrize("traefik", [EXISTING, BUNDLED], ids=["existing", "bundled"])


@BOTH
@pytest.mark.parametrize("authentication", EVERY)
def test_no_router_matches_metrics_or_the_assistant(traefik: dict[str, Any], authentication: str) -> None:
    for router in made(traefik, authentication)[0].values():
        hidden = "!PathRegexp(`(?i)^(/|%2f)+metrics`) && !PathRegexp(`(?i)mlflow(/|%2f)+assistant`)"
        assert router["rule"].startswith(f"Host(`m.example.com`) && {hidden}")


@BOTH
@pytest.mark.parametrize("authentication", EVERY)
def test_only_pages_requested_by_a_browser_may_be_redirected(traefik: dict[str, Any], authentication: str) -> None:
    # With every authentication, because a configured middleware may redirect although the setting does not say so.
    routers, middlewares = made(traefik, authentication)
    pages = routers.pop(f"{NAME}-pages")
    assert "Method(`GET`) && HeaderRegexp(`Accept`, `text/html`)" in pages["rule"]
    for path in ("/api", "/ajax-api", "/graphql", "/get-artifact", "/model-versions/get-artifact", "/gateway", "/v1"):
        assert f"!PathPrefix(`{path}`)" in pages["rule"]
    assert pages["priority"] > routers[NAME]["priority"] >= 10_000
    for router in routers.values():
        assert router["middlewares"][:3] == [f"{NAME}-forged", f"{NAME}-no-redirect", f"{NAME}-script"]
    assert middlewares[f"{NAME}-script"] == {
        "headers": {"customRequestHeaders": {"X-Requested-With": "XMLHttpRequest"}}
    }
    net = middlewares[f"{NAME}-no-redirect"]["errors"]
    # All but 304, which says that the copy in the browser is current.
    assert net["status"] == ["300-303", "305-399"]
    assert set(net["statusRewrites"].values()) == {401}


@BOTH
@pytest.mark.parametrize("authentication", EVERY)
def test_identity_headers_of_a_client_are_dropped_first(traefik: dict[str, Any], authentication: str) -> None:
    routers, middlewares = made(traefik, authentication)
    dropped = middlewares[f"{NAME}-forged"]["headers"]["customRequestHeaders"]
    assert {"Remote-User", "Remote_User", "Remote-Groups"} <= set(dropped)
    assert set(dropped.values()) == {""}
    assert {router["middlewares"][0] for router in routers.values()} == {f"{NAME}-forged"}


@BOTH
@pytest.mark.parametrize("authentication", EVERY)
def test_credentials_checked_by_traefik_are_not_forwarded_to_mlflow(
    traefik: dict[str, Any], authentication: str
) -> None:
    # They are forwarded if MLflow itself authenticates.
    routers, middlewares = made(traefik, authentication)
    private = middlewares[f"{NAME}-private"]["headers"]["customRequestHeaders"]
    assert private == {"Authorization": "", "Cookie": ""}
    for router in routers.values():
        assert (router["middlewares"][-1] == f"{NAME}-private") is (authentication != "mlflow")


def test_clients_with_the_password_bypass_single_sign_on_only() -> None:
    routers, middlewares = made(EXISTING, "singleSignOnAndPassword")
    clients = routers[f"{NAME}-clients"]
    assert "HeaderRegexp(`Authorization`, `(?i)^basic `)" in clients["rule"]
    assert clients["priority"] > max(routers[NAME]["priority"], routers[f"{NAME}-pages"]["priority"])
    assert clients["middlewares"][3:] == [f"{NAME}-password", "secureHeaders@docker", f"{NAME}-private"]
    assert middlewares[f"{NAME}-password"]["basicAuth"] == {**USERS, "realm": "MLflow"}


def test_labels_for_an_existing_traefik_follow_compose_conventions() -> None:
    found = rendered(EXISTING, "mlflow")
    router = f"traefik.http.routers.{NAME}"
    ours = f"{NAME}-forged,{NAME}-no-redirect,{NAME}-script"
    assert {key: value for key, value in found.items() if key.startswith((f"{router}.", "traefik.enable"))} == {
        "traefik.enable": "true",
        f"{router}.rule": "Host(`m.example.com`) && !PathRegexp(`(?i)^(/|%2f)+metrics`) && "
        "!PathRegexp(`(?i)mlflow(/|%2f)+assistant`)",
        f"{router}.priority": "10000",
        f"{router}.entryPoints": "websecure",
        f"{router}.service": NAME,
        f"{router}.tls.certResolver": "cloudflare",
        f"{router}.middlewares": f"{ours},secureHeaders@docker",
    }
    assert found["traefik.docker.network"] == "shared-network"
    assert found[f"traefik.http.services.{NAME}.loadbalancer.server.port"] == "5000"
    middlewares = "traefik.http.middlewares"
    assert found[f"{middlewares}.{NAME}-forged.headers.customRequestHeaders.Remote-User"] == ""
    assert found[f"{middlewares}.{NAME}-no-redirect.errors.status"] == "300-303,305-399"
    assert found[f"{middlewares}.{NAME}-no-redirect.errors.statusRewrites.300-303"] == "401"


def test_tls_without_a_certificate_resolver_has_its_own_label() -> None:
    assert rendered({"mode": "existing"}, "anonymous")[f"traefik.http.routers.{NAME}.tls"] == "true"
    assert rendered({"mode": "existing", "tls": False}, "anonymous")[f"traefik.http.routers.{NAME}.tls"] == "false"


@pytest.mark.parametrize("traefik", [{"mode": "off"}, BUNDLED], ids=["off", "bundled"])
def test_an_existing_traefik_is_disabled_by_label_when_it_has_no_route(traefik: dict[str, Any]) -> None:
    assert rendered(traefik, "anonymous") == {"traefik.enable": "false"}


def test_traefik_gets_a_hash_of_the_clients_password() -> None:
    # The hash of 32 times x, by openssl sha1 -binary | base64.
    assert htpasswd_line("x" * 32) == "mlflow:{SHA}aAy0xexdG7+lkggdzJFeFbPNnT4="


@pytest.mark.parametrize(
    ("traefik", "more", "url"),
    [
        ({"mode": "off"}, {}, "http://127.0.0.1:5000"),
        ({"mode": "off"}, {"server": {"port": 5050, "bindAddress": "0.0.0.0"}}, "http://m.example.com:5050"),
        ({"mode": "existing"}, {}, "https://m.example.com"),
        ({"mode": "existing", "tls": False}, {}, "http://m.example.com"),
        (BUNDLED, {}, "https://m.example.com"),
        (BUNDLED | {"httpsPort": 8443}, {}, "https://m.example.com:8443"),
    ],
)
def test_the_url_has_the_scheme_host_and_port_that_a_browser_uses(
    traefik: dict[str, Any], more: dict[str, Any], url: str
) -> None:
    assert a_route(traefik, "anonymous", **more).url == url
