"""What signing in, sharing and the history answer, as JSON Schemas by name: more components of `/openapi.json`."""

from __future__ import annotations

from api.openapi.forms import TEXT, TRUTH, WHOLE, Schema, list_of, object_of, one_of, or_null, page, ref

_TERMS: dict[str, Schema] = {
    "mode": one_of("view", "control"),
    "include": list_of(one_of("answer", "prompt", "reasoning")),
    "expires_at": WHOLE,
}
_MAYBE_TEXT = or_null(TEXT)

SHARING: dict[str, Schema] = {
    "StreamShare": object_of(
        "A link that shows one answer. `token` and `url` are there once, when it is made.",
        id=TEXT,
        object=one_of("stream.share"),
        stream_id=TEXT,
        created_at=WHOLE,
        key_id=_MAYBE_TEXT,
        **_TERMS,
        perhaps={"token": TEXT, "url": TEXT},
    ),
    "StreamShareList": page(ref("StreamShare")),
    "StreamShareDeleted": object_of("What was revoked.", id=TEXT, object=one_of("stream.share.deleted"), deleted=TRUTH),
    "ShareSession": object_of(
        "What a share opens in this browser; links of what it does not are null.",
        id=TEXT,
        object=one_of("share.session"),
        stream_id=TEXT,
        **_TERMS,
        links=object_of("Paths.", stream=TEXT, request=_MAYBE_TEXT, cancel=_MAYBE_TEXT),
    ),
    "ConsoleKey": object_of("A key, without its secret.", id=TEXT, name=TEXT),
    "ConsoleSession": object_of(
        "Who asks. `keyless`: this server has no keys, and asks for none.",
        object=one_of("console.session"),
        keyless=TRUTH,
        tenant=TEXT,
        role=one_of("admin", "tenant", "viewer"),
        key=or_null(ref("ConsoleKey")),
        idle_s=WHOLE,
    ),
    "ConsoleSessionDeleted": object_of("It is over.", object=one_of("console.session.deleted"), deleted=TRUTH),
    "History": object_of(
        "How well what is known of answers whose text is gone is kept. `kept_s`: null where it is not.",
        object=one_of("history"),
        status=one_of("ok", "away", "off"),
        kept_s=or_null(WHOLE),
        added=WHOLE,
        waiting=WHOLE,
        lost=WHOLE,
    ),
    "StreamCounts": object_of(
        "How many there were, by one thing.",
        object=one_of("stream.counts"),
        by=TEXT,
        data=list_of(object_of("A value; null for those without.", value=_MAYBE_TEXT, count=WHOLE)),
    ),
}
