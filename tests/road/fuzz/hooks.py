"""What schemathesis is told beside its settings. Its environment comes from `tests/road/fuzzed.rs`."""

import os

import schemathesis

OWN = os.environ.get("KAGE_FUZZ_OWN_KEY_ID", "")
SECRETS = [text for text in os.environ["KAGE_FUZZ_SECRETS"].split("\n") if text]
NO_KEY = os.environ["KAGE_FUZZ_NO_KEY"] == "true"
SEEN = open(os.environ["KAGE_FUZZ_SEEN"], "a", buffering=1, encoding="utf-8")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Its own key it does not end, and the repository of all the rest neither: what came later would find nothing."""
    path = case.path_parameters or {}
    if case.operation.path.startswith("/api/v1/keys/{id}") and case.method != "GET" and path.get("id") == OWN:
        path["id"] = "0123456789"
    if case.operation.path == "/api/v1/repositories/{name}" and case.method == "DELETE" and path.get("name") == "demo":
        path["name"] = "spare"
    global submitted, tiles
    if case.operation.path == "/api/v1/audit/tile/{path}" and case.method == "GET":
        tiles += 1
        # No value that is generated has a slash in it. The first entry has these.
        if tiles % 2 == 0 and case.meta is not None and case.meta.generation.mode.is_positive:
            path["path"] = ("0/000.p/1", "entries/000.p/1")[tiles // 2 % 2]
    if case.operation.path == "/api/v1/tasks" and case.method == "POST" and fits(case):
        submitted += 1
        # Every other one, so that the refusals are seen too.
        if submitted % 2 == 0:
            make_possible(case.body)


submitted = 0
tiles = 0


def fits(case):
    """Whether it was made to be what the document says."""
    return case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict)


def make_possible(body):
    """What the document allows and this world has not: a model for a CLI that asks none, any revision, any runtime."""
    body["repository"] = "demo"
    for field in ("base_revision", "budget"):
        body.pop(field, None)
    for assignment in body.get("cli_assignments", []):
        assignment["cli_name"] = "shell"
        for field in ("model", "budget", "runtime"):
            assignment.pop(field, None)


@schemathesis.hook
def after_call(context, case, response):
    SEEN.write(f"{response.status_code} {case.operation.label}\n")


@schemathesis.check
def shows_nothing_of_others(ctx, response, case):
    """What lies outside the key's limits is in no answer, neither in its headers nor in its body."""
    headers = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    # As bytes: not every answer is text.
    said = response.content + headers.encode()
    for secret in SECRETS:
        assert secret.encode() not in said, "the answer tells what this key may not see"


@schemathesis.check
def asks_for_a_key(ctx, response, case):
    """Behind the door is nothing that nobody sees: not even whether a request was well made."""
    keyed = "security" in case.operation.definition.raw
    if NO_KEY and keyed and case.method == case.operation.method.upper():
        assert response.status_code in (401, 414, 431), f"{response.status_code} without a key"
