# SPDX-License-Identifier: Apache-2.0
"""Goal: a model in host-py does what the contract says, and each way for it to end is named.

Without any package: what needs fastapi, pydantic or numpy is in tests/truss, beside the server
that the truss package makes.
"""

import json
import os
import time
import unittest

import drive
from headrace_host import errors, frames


def model(body, top=""):
    lines = ["class Model:"] + ["    " + line for line in body.strip("\n").split("\n")]
    return {"model/model.py": top + "\n" + "\n".join(lines) + "\n"}


ECHO = "def predict(self, inputs):\n    return inputs"


class Signatures(unittest.TestCase):
    def ask_one(self, body, inputs, want, **config):
        with drive.Host(model(body), **config) as host:
            answer = host.ready().ask(inputs)
            self.assertEqual((answer.status, answer.data), (200, want), host.log())

    def test_kinds_of_predict(self):
        rows = (
            ("def predict(self):\n    return 1", b"1"),
            (ECHO, b'{"a": [1, "\\u00e4"]}'),
            ("async def predict(self, inputs):\n    return inputs['a']", b'[1, "\\u00e4"]'),
            ("def predict(self, inputs):\n    yield 'a'\n    yield b'b'", b'"ab"'),
            ("async def predict(self, inputs):\n    yield 'a'\n    yield 'b'", b'"ab"'),
            ("def predict(self, i):\n    return (x for x in ['p', 'q'])", b'"pq"'),
        )
        for body, want in rows:
            with self.subTest(body):
                self.ask_one(body, {"a": [1, "ä"]}, want)

    def test_stages_follow_each_other(self):
        body = """
def preprocess(self, inputs):
    return inputs + ["pre"]
async def predict(self, inputs):
    return inputs + ["predict"]
def postprocess(self, result):
    return result + ["post"]
"""
        self.ask_one(body, ["in"], b'["in", "pre", "predict", "post"]')

    def test_routes_and_probes(self):
        body = ECHO + "\ndef chat_completions(self, inputs):\n    return {'chat': inputs}"
        rows = (
            ("POST /v1/chat/completions", 200, b'{"chat": 1}'),
            ("POST /v1/completions", 404, b'{"error":"`completions` must only be called if'),
            ("POST /v1/models/model:predict", 200, b"1"),
            ("GET /v1/models/model", 200, b"{}"),
            ("GET /", 200, b"true"),
            ("GET /v1/models/model/schema", 404, b'{"error":"No schema found"}'),
            ("GET /v1/completions", 405, b'{"detail":"Method Not Allowed"}'),
            ("POST /nowhere", 404, b'{"detail":"Not Found"}'),
        )
        with drive.Host(model(body)) as host:
            host.ready()
            for route, status, data in rows:
                answer = host.ask(1, route=route)
                self.assertEqual(answer.status, status, route)
                self.assertTrue(answer.data.startswith(data), answer.data)

    def test_msgpack_in_and_out(self):
        body = """
def predict(self, inputs):
    return [inputs, datetime(2026, 1, 2, tzinfo=timezone.utc), Decimal("1.50"), b"raw"]
"""
        top = "from datetime import datetime, timezone\nfrom decimal import Decimal\n"
        with drive.Host(model(body, top)) as host:
            answer = host.ready().ask(
                frames.msgpack.packb({b"__uuid__": True, b"data": "12345678" * 4}),
                input_type="Application/Octet-Stream; x=1",
            )
        self.assertEqual(answer.media_type, "application/octet-stream")
        unpacked = frames.msgpack.unpackb(answer.data, strict_map_key=False)
        self.assertEqual(
            unpacked,
            [
                {b"__uuid__": True, b"data": "12345678-1234-5678-1234-567812345678"},
                {b"__dt_datetime_iso__": True, b"data": "2026-01-02T00:00:00Z"},
                {b"__decimal__": True, b"data": "1.50"},
                b"raw",
            ],
        )

    def test_large_bodies_travel_beside_the_frames(self):
        text = "x" * (3 << 20)
        with drive.Host(model(ECHO)) as host:
            self.assertEqual(host.ready().ask(text).json(), text)

    def test_definitions_that_the_contract_forbids(self):
        rows = (
            ("x = 1", "must have a `predict` or `websocket` method"),
            ("def predict(self, a, b, c):\n    pass", "cannot have more than two arguments"),
            ("def predict(self, a, b):\n    pass", "must have request as second argument"),
            (ECHO + "\ndef is_healthy(self, x):\n    pass", "`is_healthy` must have only one"),
            ("def websocket(self, ws):\n    pass", "must be async function"),
        )
        for body, text in rows:
            with self.subTest(text), drive.Host(model(body)) as host:
                bye = host.bye()
                self.assertTrue(bye["reason"].startswith("ModelDefinitionError: "), bye)
                self.assertIn(text, bye["reason"])
                self.assertTrue(bye["final"])
                self.assertEqual(host.process.wait(10), 2)


class Loading(unittest.TestCase):
    def test_what_init_is_given(self):
        body = """
def __init__(self, config, data_dir, secrets, environment, lazy_data_resolver):
    lazy_data_resolver.block_until_download_complete()
    self.said = [config["model_class_name"], (data_dir / "a.txt").read_text(), environment,
                 secrets["stored"], secrets["in_file"], secrets["in_env"], helper.NAME,
                 os.environ["GIVEN"], os.environ.get("PORT"), os.environ.get("PIP_INDEX_URL")]
def predict(self, inputs):
    try:
        self.said.append(self.secrets["other"])
    except Exception as error:
        return self.said + [type(error).__name__]
"""
        files = model(body, "import os\nimport helper\n")
        files["data/a.txt"] = "data"
        files["packages/helper.py"] = "NAME = 'helper'"
        config = {
            "secrets": {"stored": None, "in_file": "default", "in_env": "default"},
            "environment_variables": {"GIVEN": "yes", "PORT": "1"},
        }
        env = {"TRUSS_SECRET_in_env": "env", "PIP_INDEX_URL": "http://u:p@127.0.0.1:1/"}
        with drive.Host(
            files, config, env=env, environment="production", secrets=b'{"stored": "s3"}'
        ) as host:
            said = host.ready().ask(0).json()
        self.assertEqual(
            said,
            ["Model", "data", {"name": "production"}, "s3", "default", "env", "helper", "yes"]
            + [None, None, "AttributeError"],
        )

    def test_our_modules_are_in_nobodys_way(self):
        files = model(
            "def predict(self, x):\n    return [frames.NAME, msgpack.NAME, 'headrace_host' in m]",
            "import frames, msgpack, sys\nm = [p for p in sys.path if 'host_py' in p]\n",
        )
        files["packages/frames.py"] = "NAME = 'mine'"
        files["packages/msgpack.py"] = "NAME = 'mine, too'"
        with drive.Host(files) as host:
            self.assertEqual(host.ready().ask(0).json(), ["mine", "mine, too", False])

    def test_load_is_tried_again(self):
        body = """
count = 0
def load(self):
    Model.count += 1
    if Model.count < 2:
        raise RuntimeError("not yet")
def predict(self, inputs):
    return Model.count
"""
        with drive.Host(model(body)) as host:
            self.assertEqual(host.ready().ask(0).json(), 2)
            self.assertIn("Failed to load model. Retrying", host.log())

    def test_failures_of_load_are_told_with_the_last_lines(self):
        rows = (
            ("def load(self):\n    print('weights?')\n    raise OSError('gone')", False, "gone"),
            ("import nowhere_to_be_found", True, "No module named 'nowhere_to_be_found'"),
            ("def load(self)\n    pass", True, "SyntaxError"),
            ("def __init__(self, secrets):\n    secrets['x']", True, "Secret 'x' not found"),
        )
        for body, final, text in rows:
            with self.subTest(text), drive.Host(model(body + "\n" + ECHO)) as host:
                bye = host.bye()
                self.assertIn(text, bye["reason"])
                self.assertEqual(bye.get("final", False), final)
                self.assertEqual(bye["error_class"], errors.MODEL_UNAVAILABLE)
                if not final:
                    self.assertIn("weights?", bye["reason"])

    def test_a_model_without_a_file(self):
        with drive.Host({"model/other.py": ""}) as host:
            self.assertIn("there is no model/model.py", host.bye()["reason"])

    def test_an_accelerator_that_is_not_there(self):
        if os.path.exists("/dev/nvidiactl"):
            self.skipTest("this machine has one")
        with drive.Host(model(ECHO), device="cuda") as host:
            bye = host.bye()
            self.assertIn("no NVIDIA driver", bye["reason"])
            self.assertTrue(bye["final"])


class Ends(unittest.TestCase):
    def test_an_exception_is_a_model_error_with_the_last_lines(self):
        body = "def predict(self, x):\n    print('before', x)\n    raise ValueError('no')"
        with drive.Host(model(body)) as host:
            answer = host.ready().ask(7)
        self.assertEqual(answer.error_class, errors.MODEL_ERROR)
        self.assertEqual(answer.data, b'{"error":"Internal Server Error (in model/chainlet)."}')
        self.assertEqual(answer.status, 500)
        for text in ("before 7", "ValueError: no", "model.py"):
            self.assertIn(text, answer.text)

    def test_odd_exceptions_end_the_request_alone(self):
        kinds = "SystemExit KeyboardInterrupt StopIteration GeneratorExit TimeoutError".split()
        for is_async in ("", "async "):
            body = is_async + "def predict(self, x):\n    raise eval(x)('x') if x else 0"
            with drive.Host(model(body)) as host:
                host.ready()
                for kind in kinds:
                    answer = host.ask(kind)
                    self.assertEqual(answer.error_class, errors.MODEL_ERROR, (is_async, kind))
                    self.assertEqual(answer.status, 500)

    def test_what_cannot_be_encoded(self):
        with drive.Host(model("def predict(self, x):\n    return {1, 2}")) as host:
            answer = host.ready().ask(0)
            binary = host.ask(b"\x01", input_type="application/octet-stream")
        self.assertEqual(answer.error_class, errors.MODEL_ERROR)
        self.assertIn("Object of type set is not JSON serializable", answer.text)
        self.assertEqual(binary.error_class, errors.MODEL_ERROR)

    def test_bad_bodies(self):
        rows = ((b"{", None), (b"\xff", None), (b"", None), (b"\xc1", "application/octet-stream"))
        with drive.Host(model(ECHO)) as host:
            host.ready()
            for body, kind in rows:
                answer = host.ask(body, input_type=kind)
                self.assertEqual((answer.error_class, answer.status), (errors.BAD_INPUT, 400), body)

    def test_out_of_memory_has_its_class(self):
        with drive.Host(model("def predict(self, x):\n    raise MemoryError('big')")) as host:
            self.assertEqual(host.ready().ask(0).error_class, errors.OOM)

    def test_causes_in_a_circle(self):
        body = """
def predict(self, x):
    error = ValueError("round")
    raise error from error
"""
        with drive.Host(model(body)) as host:
            self.assertEqual(host.ready().ask(0, 10).error_class, errors.MODEL_ERROR)
            self.assertEqual(host.ask(0, 10).status, 500)

    def test_exit_of_the_process_closes_the_socket(self):
        with drive.Host(model("def predict(self, x):\n    os._exit(7)", "import os\n")) as host:
            host.ready().send(b"0")
            self.assertIsNone(host.next())
            self.assertEqual(host.process.wait(10), 7)

    def test_garbage_on_every_descriptor(self):
        body = """
def predict(self, x):
    for fd in range(1, 4):
        try:
            os.write(fd, bytes(range(256)))
        except OSError:
            pass
    print("{not json")
    return "still here"
"""
        with drive.Host(model(body, "import os\n")) as host:
            self.assertEqual(host.ready().ask(0).json(), "still here")
            self.assertEqual(host.ask(0).json(), "still here")

    def test_a_worker_that_leaves_ends_the_host(self):
        body = "def predict(self, x):\n    time.sleep(3600)"
        with drive.Host(model(body, "import time\n")) as host:
            host.ready().send(b"0")
            host.link.sock.close()
            self.assertEqual(host.process.wait(10), 0)

    def test_drain(self):
        body = "async def predict(self, x):\n    await asyncio.sleep(x)\n    return x"
        with drive.Host(model(body, "import asyncio\n")) as host:
            id = host.ready().send(b"0.3")
            host.link.send_now(frames.DRAIN)
            self.assertEqual(host.answer(id).data, b"0.3")
            bye = host.bye()
            self.assertEqual((bye.get("error_class", 0), bye["reason"]), (0, "drained"))
            self.assertEqual(host.process.wait(10), 0)

    def test_a_request_without_credit(self):
        with drive.Host(model("def predict(self, x):\n    time.sleep(x)", "import time\n")) as host:
            host.ready()
            host.send(b"5")
            host.send(b"5")
            self.assertIn("without credit", host.bye()["reason"])


class Cancel(unittest.TestCase):
    def test_async_code_is_canceled(self):
        body = """
async def predict(self, x):
    print("begun")
    try:
        await asyncio.sleep(3600)
    finally:
        print("cleaned up")
"""
        with drive.Host(model(body, "import asyncio\n")) as host:
            id = host.ready().send(b"0")
            while "begun" not in host.log():
                time.sleep(0.01)
            host.cancel(id)
            answer = host.answer(id, 10)
            self.assertEqual((answer.error_class, answer.status), (errors.CANCELED, 499))
            self.assertIn("cleaned up", host.log())

    def test_sync_code_ends_by_itself_and_keeps_its_slot(self):
        body = "def predict(self, x):\n    print('begun')\n    time.sleep(x)\n    return x"
        with drive.Host(model(body, "import time\n")) as host:
            id = host.ready().send(b"0.5")
            while "begun" not in host.log():
                time.sleep(0.01)
            begun = time.monotonic()
            host.cancel(id)
            host.answer(id)
            self.assertGreater(time.monotonic() - begun, 0.3)
            self.assertEqual(host.ask(0).data, b"0")

    def test_generators_are_closed(self):
        for is_async in ("", "async "):
            body = """
%sdef predict(self, x):
    try:
        while True:
            time.sleep(0.01)
            yield "piece "
    finally:
        print("closed")
""" % is_async
            with self.subTest(is_async), drive.Host(model(body, "import time\n")) as host:
                id = host.ready().send(b"0", stream=True)
                while not host.pieces.get(id):
                    kind, evt = host.next()
                    host.pieces.setdefault(id, []).append(evt)
                host.cancel(id)
                self.assertEqual(host.answer(id, 10).error_class, errors.CANCELED)
                self.assertIn("closed", host.log())


class Streams(unittest.TestCase):
    BODY = """
%sdef predict(self, n):
    for i in range(n):
        yield "%%d " %% i
    if n == 3:
        raise RuntimeError("broken off")
"""

    def test_pieces_come_as_they_are_made(self):
        for is_async in ("", "async "):
            with self.subTest(is_async), drive.Host(model(self.BODY % is_async)) as host:
                answer = host.ready().ask(5, stream=True)
                self.assertEqual(answer.pieces, [b"0 ", b"1 ", b"2 ", b"3 ", b"4 "])
                self.assertEqual(answer.piece_type, "application/octet-stream")
                self.assertEqual((answer.kind, answer.data), (frames.OUTPUT, b"0 1 2 3 4 "))

    def test_a_stream_that_breaks_is_an_error(self):
        with drive.Host(model(self.BODY % "")) as host:
            answer = host.ready().ask(3, stream=True)
            self.assertEqual(len(answer.pieces), 3)
            self.assertEqual(answer.error_class, errors.MODEL_ERROR)
            self.assertIn("broken off", answer.text)

    def test_a_stream_has_one_context(self):
        """What was set in it can be taken back; generated chainlets do that."""
        body = """
async def predict(self, n):
    token = seen.set(7)
    try:
        for _ in range(n):
            await asyncio.sleep(0)
            yield str(seen.get())
    finally:
        seen.reset(token)
"""
        above = "import asyncio, contextvars\nseen = contextvars.ContextVar('seen', default=0)\n"
        with drive.Host(model(body, above)) as host:
            answer = host.ready().ask(3, stream=True)
            self.assertEqual((answer.kind, answer.data), (frames.OUTPUT, b"777"))

    def test_a_gap_is_an_error(self):
        body = "async def predict(self, x):\n    yield 'a'\n    await asyncio.sleep(60)\n    yield 'b'"
        config = {"runtime": {"streaming_read_timeout": 1}}
        with drive.Host(model(body, "import asyncio\n"), config) as host:
            answer = host.ready().ask(0, stream=True)
            self.assertEqual(answer.error_class, errors.MODEL_TIMEOUT)
            self.assertIn("streaming_read_timeout", answer.text)

    def test_many_pieces_wait_for_the_worker(self):
        body = "def predict(self, n):\n    for i in range(n):\n        yield b'x' * 65536"
        with drive.Host(model(body)) as host:
            id = host.ready().send(b"400", stream=True)
            time.sleep(0.5)
            self.assertEqual(sum(map(len, host.answer(id).pieces)), 400 * 65536)

    def test_postprocess_and_streams_exclude_each_other(self):
        body = self.BODY % "" + "\ndef postprocess(self, x):\n    return x"
        with drive.Host(model(body)) as host:
            self.assertEqual(host.ready().ask(1).status, 500)


class Concurrency(unittest.TestCase):
    def test_as_many_as_it_says_and_no_more(self):
        body = """
lock = threading.Lock()
now = most = 0
def predict(self, x):
    with Model.lock:
        Model.now += 1
        Model.most = max(Model.most, Model.now)
    time.sleep(0.1)
    with Model.lock:
        Model.now -= 1
    return Model.most
"""
        config = {"runtime": {"predict_concurrency": 3}}
        top = "import threading, time\n"
        with drive.Host(model(body, top), config, req_count_max=8) as host:
            self.assertEqual(host.ready().ready_frame["granted"], 8)
            ids = [host.send(b"0") for _ in range(8)]
            self.assertEqual(max(host.answer(id).json() for id in ids), 3)

    def test_lines_carry_the_id_of_their_job(self):
        body = "def predict(self, x):\n    logging.warning('said %s', x)\n    return x"
        config = {"runtime": {"predict_concurrency": 4}}
        with drive.Host(model(body, "import logging\n"), config) as host:
            ids = [host.ready().send(b"1", job=bytes(range(16)))]
            for id in ids:
                host.answer(id)
            lines = [json.loads(line) for line in host.log().splitlines() if line.startswith("{")]
        said = [line for line in lines if line["message"] == "said 1"]
        self.assertEqual(said[0]["levelname"], "WARNING")
        self.assertEqual(said[0]["request_id"], "00010203-0405-0607-0809-0a0b0c0d0e0f")


if __name__ == "__main__":
    unittest.main()
