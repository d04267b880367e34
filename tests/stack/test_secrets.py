# SPDX-License-Identifier: Apache-2.0
"""Goal: a model has the secrets that its config.yaml names, and nobody else has them: no other model, no
API, no SQL, no log, no file of any store, no command line, no environment.

Method: one stack with a Truss and a server that answer with digests, so that a value found anywhere is one
that leaked; the whole data directory is searched for the values at the end.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import pty
import subprocess

import pytest
from stack import BINARY, ROOT, Stack, descendants, wait_until

WHEELS = os.environ["HEADRACE_DEPS"] + "/wheels-truss"
ONE, TWO, OTHER, THIRD = (f"leak-{name}-4f1e9a7c55" for name in ("one", "two", "other", "third"))

MODEL = """
import hashlib, os

class Model:
    def __init__(self, **kwargs):
        self.secrets = kwargs["secrets"]

    def predict(self, asked):
        name = asked["name"]

        def look(path):
            try:
                return open(path).read()
            except OSError as error:
                return str(error)

        if name == "everywhere":
            return [pid for pid in os.listdir("/proc") if pid.isdigit() and any(
                "leak-" in look("/proc/%s/%s" % (pid, what)) for what in ("environ", "cmdline"))]
        try:
            return hashlib.sha256(self.secrets[name].encode()).hexdigest()
        except Exception as error:
            return type(error).__name__ + ": " + str(error)
"""

SERVER = """
import hashlib, http.server, json, os

class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        folder = os.environ["SECRETS_DIR"]
        found = {name: hashlib.sha256(open(folder + "/" + name, "rb").read()).hexdigest()
                 for name in os.listdir(folder)}
        body = json.dumps({"folder": folder, "found": found,
                           "mode": [oct(os.stat(folder + "/" + n).st_mode & 0o777) for n in found]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Server).serve_forever()
"""

SERVER_CONFIG = """
model_name: %s
docker_server:
  start_command: exec python3 server.py
  server_port: %d
  predict_endpoint: /predict
  readiness_endpoint: /health
  liveness_endpoint: /health
secrets: %s
"""


def digest(value):
    return hashlib.sha256(value.encode()).hexdigest()


@pytest.fixture(scope="module")
def stack(request):
    with Stack(env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_COMPILE": "1",
                    "HEADRACE_RESTART_DELAY": "50ms"}) as stack:
        yield stack


def set_secret(stack, name, value, *more, check=True):
    return stack.cli("secrets", "set", name, *more, input=value, check=check)


def truss(folder, name, secrets):
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model_name: {name}\nsecrets: {json.dumps(secrets)}\n")
    (folder / "model/model.py").write_text(MODEL)
    return str(folder)


def server(folder, name, secrets, port=0):
    folder.mkdir()
    (folder / "config.yaml").write_text(SERVER_CONFIG % (name, port or 18300, json.dumps(secrets)))
    (folder / "server.py").write_text(SERVER)
    return str(folder)


def push(stack, folder):
    return stack.cli("push", folder, "--no-wait", "--json").stdout.strip()


def ask(stack, model, value):
    return json.loads(stack.cli("predict", model, "--quiet", "--input", json.dumps({"name": value})).stdout)


@pytest.fixture(scope="module")
def models(stack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    set_secret(stack, "token", ONE + "\n")
    set_secret(stack, "other", OTHER, "--keep-newline")
    ids = [push(stack, truss(folder / "a", "a", {"token": None, "plain": "of the file", "nothing": None})),
           push(stack, truss(folder / "b", "b", {"other": None})),
           push(stack, server(folder / "web", "web", {"token": None, "nothing": None, "plain": "of the file"}))]
    for id in ids:
        stack.wait_active(id, 120)
    return stack


def test_a_model_reads_what_it_names(models):
    assert ask(models, "a", "token") == digest(ONE)
    assert ask(models, "a", "plain") == digest("of the file")
    assert ask(models, "b", "other") == digest(OTHER)
    web = ask(models, "web", "")
    assert web["found"] == {"token": digest(ONE), "plain": digest("of the file")}
    assert set(web["mode"]) == {"0o400"}


def test_and_nothing_else(models):
    said = ask(models, "b", "token")
    assert said.startswith("SecretNotFound: Secret 'token' not found. It must be named under 'secrets'"), said
    said = ask(models, "a", "nothing")
    assert "headrace secrets set nothing" in said, said
    assert ask(models, "a", "everywhere") == []
    for pid in descendants(models.process.pid):
        for what in ("environ", "cmdline"):
            try:
                text = pathlib.Path(f"/proc/{pid}/{what}").read_bytes()
            except OSError:  # it has ended
                continue
            assert b"leak-" not in text, (pid, what)
    log = models.cli("logs", "web", "--limit", "1000").stdout
    assert "secrets_without_value" in log and "nothing" in log


def test_a_new_value_is_there_from_the_next_start_of_a_worker(models):
    before = models.sql("SELECT pid FROM headrace_v1.workers WHERE deployment_id IN "
                        "(SELECT d.id FROM headrace.deployment d JOIN headrace.model m ON m.id = d.model_id "
                        "WHERE m.name = 'a') AND status = 'READY'")
    set_secret(models, "token", TWO)
    assert ask(models, "a", "token") == digest(ONE)
    os.kill(int(before[0][0]), 15)  # drains; the agent starts it again
    wait_until("the new value", lambda: ask(models, "a", "token") == digest(TWO), 60, step=0.2)


def test_a_row_that_was_moved_does_not_open(stack, tmp_path):
    set_secret(stack, "third", THIRD)
    stack.sql("INSERT INTO headrace.secret (tenant, name, id, sealed) "
              "SELECT tenant, 'stolen', 'x', sealed FROM headrace.secret WHERE name = 'third'")
    id = push(stack, server(tmp_path / "m", "thief", {"stolen": None}, 18301))

    def ended():
        ((status, reason),) = stack.sql("SELECT status, status_reason FROM headrace.deployment WHERE id = :'a1'", id)
        return reason if status == "DEPLOY_FAILED" else None

    assert "secret default/stolen: does not open with this key" in wait_until("the deployment to fail", ended, 30)


def test_the_verb(stack, tmp_path):
    file = tmp_path / "value"
    file.write_bytes(b"a\nb\n")
    made = json.loads(stack.cli("secrets", "set", "lines", "--from-file", file, "--json").stdout)
    assert set(made) == {"id", "name", "tenant", "team_name", "created_at", "updated_at"}
    assert made["name"] == "lines" and made["team_name"] == "default"
    again = json.loads(stack.cli("secrets", "set", "lines", "--from-file", file, "--json").stdout)
    assert again["id"] == made["id"] and again["created_at"] == made["created_at"]
    assert again["updated_at"] > made["updated_at"]
    assert "lines" in stack.cli("secrets", "ls").stdout
    for words, value, text in (
        (["a/b"], "x", "'a/b' is no name of a secret: it must be 1 to 253 of"),
        (["NAME=value"], "x", "'NAME=value' is no name of a secret"),
        ([".."], "x", "no file can be called so"),
        (["empty"], "\n", "the value has 0 bytes; it must have 1 to 65536"),
        (["big"], "x" * 65537, "the value has at least 65537 bytes"),
        (["a", "value"], "x", "its value comes from --from-file or standard input expected, 2 given"),
        (["a", "--from-file", "/nowhere"], "", "--from-file=/nowhere"),
    ):
        done = stack.cli("secrets", "set", *words, input=value, check=False)
        assert done.returncode == 1 and text in done.stderr, (words, done.stderr)
    done = subprocess.run([BINARY, "secrets", "set", "bytes", "--url", stack.url("gateway"), "--api-key", stack.key],
                          input=b"\xff\xfe", capture_output=True, timeout=30)
    assert done.returncode == 1 and b"no UTF-8" in done.stderr
    assert json.loads(stack.cli("secrets", "rm", "lines", "--json").stdout) == {"name": "lines"}
    gone = stack.cli("secrets", "rm", "lines", check=False)
    assert gone.returncode == 2 and "there is no secret of this name" in gone.stderr
    told = stack.sql("SELECT action FROM headrace.audit WHERE target = 'lines' ORDER BY id")
    assert told == [["SECRET_UPDATED"], ["SECRET_UPDATED"], ["SECRET_DELETED"]]


def test_a_terminal_shows_nothing_of_what_is_typed(stack):
    above, below = pty.openpty()
    child = subprocess.Popen([BINARY, "secrets", "set", "typed", "--url", stack.url("gateway"), "--api-key", stack.key],
                             stdin=below, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    asked = b""
    while b"not shown): " not in asked:
        asked += os.read(child.stderr.fileno(), 100)
    os.write(above, b"leak-typed-4f1e9a7c55\n")
    assert child.wait(timeout=30) == 0
    os.set_blocking(above, False)
    shown = asked + child.stdout.read() + child.stderr.read()
    with contextlib.suppress(BlockingIOError):
        shown += os.read(above, 1000)
    assert b"leak-" not in shown and b"typed" in shown
    os.close(above)
    os.close(below)


def test_the_routes(stack):
    for body, text in (
        ({"name": "n"}, "value must be a string"),
        ({"value": "v"}, "name must be a string"),
        ({"name": "n", "value": ""}, "value has 0 bytes; it must have 1 to 65536"),
        ({"name": "n", "value": "v" * 65537}, "value has 65537 bytes"),
        ({"name": "n", "value": "v\0"}, "NUL"),
        ({"name": "n", "value": "v", "valu": 1}, "valu"),
        ({"name": "a b", "value": "v"}, "name: 'a b' is no name"),
    ):
        reply = stack.http("POST", "/v1/secrets", body)
        assert reply.status == 400 and text in reply.json["error"], reply
    assert stack.http("POST", "/v1/secrets", {"name": "n", "value": "v" * 600_000}).status == 413
    assert stack.http("DELETE", "/v1/secrets/a%20b").status == 400
    assert stack.http("GET", "/v1/secrets/token").status == 405

    key = json.loads(stack.cli("keys", "create", "--json").stdout)["api_key"]
    predict = stack.http("POST", "/v1/api_keys", {"name": "p", "type": "WORKSPACE_INVOKE"}).json["api_key"]
    assert stack.http("GET", "/v1/secrets", key=predict).status == 403
    assert stack.http("POST", "/v1/secrets", {"name": "n", "value": "v"}, key=predict).status == 403
    assert stack.http("GET", "/v1/secrets", key=key).status == 200
    stack.cli("tenants", "create", "acme")
    acme = json.loads(stack.cli("keys", "create", "--tenant", "acme", "--json").stdout)["api_key"]
    set_secret(stack, "token", "theirs", "--tenant", "acme")
    assert [s["name"] for s in stack.http("GET", "/v1/secrets", key=acme).json["secrets"]] == ["token"]
    assert stack.http("GET", "/v1/secrets?tenant=default", key=acme).status == 403
    assert stack.http("DELETE", "/v1/secrets/token?tenant=default", key=acme).status == 403
    assert stack.http("DELETE", "/v1/secrets/token", key=acme).json == {"name": "token"}
    assert stack.http("POST", "/v1/secrets?tenant=nobody", {"name": "n", "value": "v"}).status == 404
    assert "token" in [s["name"] for s in stack.http("GET", "/v1/secrets").json["secrets"]]


def test_a_tenant_has_a_thousand_at_most(stack):
    stack.sql("INSERT INTO headrace.secret (tenant, name, id, sealed) "
              "SELECT 'acme', 'n' || n, 'x', 'x' FROM generate_series(1, 1000) n")
    done = set_secret(stack, "more", "x", "--tenant", "acme", check=False)
    assert done.returncode == 2 and "the tenant has 1000 secrets" in done.stderr
    assert stack.http("POST", "/v1/secrets?tenant=acme", {"name": "n1", "value": "v"}).status == 200
    stack.sql("DELETE FROM headrace.secret WHERE tenant = 'acme'")


def test_without_a_seal_key(models):
    """A gateway says 501 then."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    urls = {name: models.url(name) for name in ("kafka", "postgres", "redis")}
    port = 18302
    gateway = subprocess.Popen(
        [BINARY, "gateway", f"--port={port}", f"--kafka={urls['kafka']}", f"--postgres={urls['postgres']}",
         f"--redis={urls['redis']}", f"--blobs={models.data_dir}/blobs"], env=env, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        def refused():
            done = subprocess.run([BINARY, "secrets", "set", "n", "--url", f"http://127.0.0.1:{port}", "--api-key",
                                   models.key], input="v", capture_output=True, text=True, timeout=30)
            return "no seal-key-file" in done.stderr and done.returncode == 2

        wait_until("a refusal", refused, 20, step=0.1)
    finally:
        gateway.kill()
        gateway.wait()


def test_a_worker_by_hand(tmp_path):
    file = tmp_path / "secrets"
    for text, says in (("[]", "it must hold a JSON object of texts"), ('{"a": 1}', "a JSON object of texts"),
                       ('{"a": "' + "x" * 270_000 + '"}', "--secrets"), (None, "--secrets=")):
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        done = subprocess.run([BINARY, "worker", "--worker=w", "--pool=p", f"--secrets={file}"],
                              capture_output=True, text=True, timeout=30)
        assert done.returncode in (1, 2) and says in done.stderr and "xxx" not in done.stderr, done


def test_no_value_is_anywhere(models):
    """After all that came before: the files of Kafka, Postgres, Redis, the blob store, and every log."""
    models.sql("CHECKPOINT")
    models.redis("SAVE")
    for value in ("4f1e9a7c55", base64.b64encode(b"leak-one-").decode(), base64.b64encode(b"leak-two-").decode()):
        found = subprocess.run(["grep", "-rlaF", value, models.data_dir], capture_output=True, text=True).stdout
        assert found == ""
    found = subprocess.run(["grep", "-rlaF", digest(ONE), models.data_dir], capture_output=True, text=True).stdout
    assert "/postgres/" in found and "/kafka/" in found  # so what was stored is found that way
    dump = subprocess.run(["pg_dump", "--data-only", models.url("postgres")], capture_output=True, timeout=60).stdout
    assert b"leak-" not in dump and b"leak-".hex().encode() not in dump and b"SECRET_UPDATED" in dump
    assert "leak-" not in models.cli("secrets", "ls", "--json").stdout
    names = models.sql("SELECT name FROM headrace_v1.secrets WHERE tenant = 'default' ORDER BY name")
    assert ["token"] in names
