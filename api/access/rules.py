"""Who may use which route: one table, by which every request is checked before its route has it.

Hidden here: which role may do what. A route that has no row stops the start, so none can be forgotten. Whose an object is, is
looked at where objects are found: to a tenant, what is another's is not there (404).

| Access | admin | tenant | viewer | stream token | share | without a key |
| --- | --- | --- | --- | --- | --- | --- |
| OPEN | yes | yes | yes | yes | yes | yes |
| WATCH | yes | yes | yes | of this stream | of this stream | no |
| SHOWN | yes | yes | yes | no | of this stream | no |
| READ | yes | yes | yes | no | no | no |
| CONTROL | yes | yes | no | no | of this stream, with `control` | no |
| WRITE | yes | yes | no | no | no | no |
| ADMIN | yes | no | no | no | no | no |

A browser that is signed in is whoever its key is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from shared.config.tenants import TENANT
from shared.errors import BadRequest, Forbidden
from shared.features.access.keys import Role


class Access(Enum):
    """What a route asks of a caller."""

    __hash__ = (
        object.__hash__
    )  # each is one object: Enum's own is a function of its name, and every request asks for it

    OPEN = "anyone"
    WATCH = "who may read, and the token or a share of the stream that the path names"
    SHOWN = "who may read, and a share of that stream"
    READ = "who may read"
    CONTROL = "who may change something, and a share of that stream that lets"
    WRITE = "who may change something, or spend something"
    ADMIN = "who looks after the server"


class Rule(NamedTuple):
    """`all_tenants`: an admin may ask for those of every tenant, with `tenant=*`. `alone`: on a server without keys whoever is
    on its machine may do it, too."""

    access: Access
    all_tenants: bool = False
    alone: bool = False


_OPEN, _WATCH, _SHOWN, _READ, _CONTROL, _WRITE, _ADMIN = map(Rule, Access)
_LIST = Rule(Access.READ, all_tenants=True)

RULES: dict[str, Rule] = {
    "GET /": _OPEN,
    "GET /docs": _OPEN,
    "GET /docs/swagger": _OPEN,
    "GET /docs/swagger/{name}": _OPEN,
    "GET /openapi.json": _OPEN,
    "GET /health": _OPEN,
    "GET /healthz": _OPEN,
    "GET /readyz": _OPEN,
    "GET /metrics": _OPEN,
    "POST /console/session": _OPEN,
    "GET /console/session": _READ,
    "DELETE /console/session": _OPEN,
    "POST /s/session": _OPEN,
    "GET /console": _OPEN,  # files; what they show they ask for themselves
    "GET /console/{path:path}": _OPEN,
    "GET /s": _OPEN,
    "POST /v1/chat/completions": _WRITE,
    "GET /v1/chat/completions": _LIST,
    "GET /v1/chat/completions/{generation_id}": _READ,
    "POST /v1/chat/completions/{generation_id}": _WRITE,
    "DELETE /v1/chat/completions/{generation_id}": _WRITE,
    "GET /v1/chat/completions/{generation_id}/messages": _READ,
    "POST /v1/completions": _WRITE,
    "GET /v1/completions/{completion_id}": _READ,
    "POST /v1/responses": _WRITE,
    "GET /v1/responses": _LIST,
    "WEBSOCKET /v1/responses": _WRITE,
    "POST /v1/responses/input_tokens": _READ,  # it only counts
    "POST /v1/responses/compact": _WRITE,
    "GET /v1/responses/{response_id}": _READ,
    "DELETE /v1/responses/{response_id}": _WRITE,
    "GET /v1/responses/{response_id}/input_items": _READ,
    "POST /v1/responses/{response_id}/cancel": _WRITE,
    "POST /v1/conversations": _WRITE,
    "GET /v1/conversations/{conversation_id}": _READ,
    "POST /v1/conversations/{conversation_id}": _WRITE,
    "DELETE /v1/conversations/{conversation_id}": _WRITE,
    "POST /v1/conversations/{conversation_id}/items": _WRITE,
    "GET /v1/conversations/{conversation_id}/items": _READ,
    "GET /v1/conversations/{conversation_id}/items/{item_id}": _READ,
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": _WRITE,
    "POST /v1/embeddings": _WRITE,
    "POST /v1/moderations": _WRITE,
    "GET /v1/streams": _LIST,
    "GET /v1/streams/facets": _LIST,
    "GET /v1/streams/counts": _LIST,
    "GET /v1/streams/{generation_id}": _WATCH,
    "DELETE /v1/streams/{generation_id}": _WRITE,
    "GET /v1/streams/{generation_id}/request": _SHOWN,
    "POST /v1/streams/{generation_id}/tokens": _READ,  # it opens no more than its key does, and ends with that
    "POST /v1/streams/{generation_id}/shares": _WRITE,
    "GET /v1/streams/{generation_id}/shares": _READ,
    "DELETE /v1/streams/{generation_id}/shares/{share_id}": _WRITE,
    "POST /v1/streams/{generation_id}/cancel": _CONTROL,
    "POST /v1/streams/{generation_id}/retry": _WRITE,
    "POST /v1/streams/{generation_id}/redeliver": _WRITE,
    "POST /v1/streams/cancel": _WRITE,
    "GET /v1/sessions": _LIST,
    "GET /v1/sessions/{session_id}": _READ,
    "DELETE /v1/sessions/{session_id}": _WRITE,
    "GET /v1/sessions/{session_id}/messages": _READ,
    "POST /v1/files": _WRITE,
    "GET /v1/files": _LIST,
    "GET /v1/files/{file_id}": _READ,
    "DELETE /v1/files/{file_id}": _WRITE,
    "GET /v1/files/{file_id}/content": _READ,
    "POST /v1/batches": _WRITE,
    "GET /v1/batches": _LIST,
    "GET /v1/batches/{batch_id}": _READ,
    "POST /v1/batches/{batch_id}/cancel": _WRITE,
    "POST /v1/batches/{batch_id}/redeliver": _WRITE,
    "GET /v1/batches/{batch_id}/events": _READ,
    "GET /v1/batches/{batch_id}/output": _READ,
    "GET /v1/batches/{batch_id}/errors": _READ,
    "GET /v1/usage": _LIST,
    "GET /v1/models": _READ,
    "GET /v1/models/{model:path}": _READ,
    "GET /v1/events": _LIST,
    "GET /v1/workers": Rule(Access.ADMIN, alone=True),
    "POST /v1/workers/{worker_id}/drain": Rule(Access.ADMIN, alone=True),
    "POST /v1/workers/{worker_id}/resume": Rule(Access.ADMIN, alone=True),
    "GET /v1/providers": Rule(Access.ADMIN, alone=True),
    "POST /v1/providers/{name}/test": Rule(Access.ADMIN, alone=True),
    "GET /v1/queue": _LIST,
    "GET /v1/history": _READ,
    "GET /v1/redis": Rule(Access.ADMIN, alone=True),
    "GET /v1/settings": Rule(Access.ADMIN, alone=True),
    "POST /v1/keys": _ADMIN,
    "GET /v1/keys": Rule(Access.ADMIN, all_tenants=True),
    "GET /v1/keys/{key_id}": _ADMIN,
    "POST /v1/keys/{key_id}": _ADMIN,
    "DELETE /v1/keys/{key_id}": _ADMIN,
    "POST /v1/keys/{key_id}/rotate": _ADMIN,
    "GET /v1/limits": _READ,
    "POST /v1/limits/{tenant}": _ADMIN,
    "DELETE /v1/limits/{tenant}": _ADMIN,
    "GET /v1/audit": Rule(Access.ADMIN, all_tenants=True),
}
"""By method and path as the router has it; `WEBSOCKET` stands for a method where there is none."""

EVERY_TENANT = "*"

_MAY: dict[Role, frozenset[Access]] = {
    "admin": frozenset(Access),
    "tenant": frozenset(Access) - {Access.ADMIN},
    "viewer": frozenset({Access.OPEN, Access.WATCH, Access.SHOWN, Access.READ}),
    "token": frozenset({Access.OPEN, Access.WATCH}),
    "share": frozenset({Access.OPEN, Access.WATCH, Access.SHOWN}),
    "control": frozenset({Access.OPEN, Access.WATCH, Access.SHOWN, Access.CONTROL}),
}
OF_SHARES = frozenset({Access.WATCH, Access.SHOWN, Access.CONTROL})
"""What a share opens of its stream, with the query `share`."""
_REFUSALS = {
    Access.WRITE: "This key may only read. Use one whose role is `tenant`.",
    Access.CONTROL: "This may only watch: a key whose role is `viewer`, or a share without `control`.",
    Access.ADMIN: "This is for keys whose role is `admin`.",
}


def rule_of(scope: Mapping[str, Any]) -> Rule:
    """The rule of the route that a request was given to."""
    return RULES[f"{scope.get('method', 'WEBSOCKET')} {scope['route'].path}"]


def check_role(rule: Rule, role: Role) -> None:
    """Raises Forbidden."""
    if rule.access not in _MAY[role]:
        raise Forbidden(_REFUSALS.get(rule.access, "This token opens one stream, and nothing else."))


def tenant_meant(rule: Rule, role: Role, asked: list[str]) -> str | None:
    """Which tenant an admin means with `tenant=`; None: it says none. Raises Forbidden for others, who have but one, and
    BadRequest."""
    if not asked:
        return None
    if role != "admin":
        raise Forbidden("Only a key whose role is `admin` may name a tenant.")
    if len(set(asked)) > 1:
        raise BadRequest("The query 'tenant' stands there twice. Send one.", param="tenant")
    if asked[0] == EVERY_TENANT and not rule.all_tenants:
        raise BadRequest("This is about one tenant at a time: name it, as `tenant=NAME`.", param="tenant")
    if asked[0] != EVERY_TENANT and not re.fullmatch(TENANT, asked[0]):
        raise BadRequest("A tenant has 1 to 64 letters, digits, `_`, `.` or `-`.", param="tenant")
    return asked[0]


def names_of(routes: Iterable[Any]) -> Iterator[str]:
    """Routes as `RULES` names them."""
    for route in routes:
        methods = getattr(route, "methods", None) or {"WEBSOCKET"}
        yield from (f"{method} {route.path}" for method in sorted(methods - {"HEAD", "OPTIONS"}))


def check_complete(routes: Iterable[Any]) -> None:
    """`routes` are all there are. Raises LookupError for one without a rule, or a rule without a route."""
    if wrong := set(names_of(routes)) ^ set(RULES):
        raise LookupError(f"api/access/rules.py and the routes differ: {', '.join(sorted(wrong))}")
