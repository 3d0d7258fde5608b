"""An authorization server for the tests, beside the MCP server, and a client that goes through its flow: registration, PKCE, tokens.

It knows its users by the name of the client that registers, and asks no person. Access tokens are spent when they are issued, in the
eyes of the client, so that each request refreshes them: no two requests have the same.
"""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken


REDIRECT = "http://127.0.0.1:9/callback"  # the answer is read from the redirection, so nothing listens there


class AuthorizationServer:
    """Registers clients, and issues codes and tokens; all in memory."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = AuthorizationCode(
            code=secrets.token_urlsafe(),
            scopes=params.scopes or [],
            expires_at=time.time() + 600,
            client_id=str(client.client_id),
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
            subject=client.client_name,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(self, _client: Any, authorization_code: str) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, client: Any, authorization_code: AuthorizationCode) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._issue(client, authorization_code.scopes, authorization_code.subject, authorization_code.resource)

    async def load_refresh_token(self, _client: Any, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(self, client: Any, refresh_token: RefreshToken, scopes: list[str]) -> OAuthToken:
        del self.refresh[refresh_token.token]
        return self._issue(client, scopes, refresh_token.subject, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: Any) -> None:
        self.access.pop(token.token, None)

    def _issue(self, client: Any, scopes: list[str], subject: str | None, resource: str | None) -> OAuthToken:
        about: dict[str, Any] = {"client_id": str(client.client_id), "scopes": scopes, "subject": subject}
        about["resource"] = resource
        access = AccessToken(token=secrets.token_urlsafe(), **about)
        refresh = RefreshToken(token=secrets.token_urlsafe(), **about)
        self.access[access.token], self.refresh[refresh.token] = access, refresh
        return OAuthToken(access_token=access.token, expires_in=0, refresh_token=refresh.token)


class Storage:
    """Keeps the tokens of one installation of a client, and how many it has had."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None
        self.issued: list[str] = []

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens
        self.issued.append(tokens.access_token)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


def authorized(url: str, user: str, storage: Storage) -> OAuthClientProvider:
    """Return what authenticates the requests of a user, who consents to everything at once."""
    answers: list[AuthorizationCodeResult] = []

    async def consent(authorization_url: str) -> None:
        async with httpx2.AsyncClient(follow_redirects=False) as browser:
            redirected = await browser.get(authorization_url)
        assert redirected.status_code == 302, redirected.text
        values = {name: each[0] for name, each in parse_qs(urlsplit(redirected.headers["location"]).query).items()}
        answers.append(AuthorizationCodeResult(**values))

    async def answer() -> AuthorizationCodeResult:
        return answers.pop()

    metadata = OAuthClientMetadata.model_validate(
        {"client_name": user, "redirect_uris": [REDIRECT], "grant_types": ["authorization_code", "refresh_token"]}
    )
    return OAuthClientProvider(url, metadata, storage, redirect_handler=consent, callback_handler=answer)
