# SPDX-License-Identifier: Apache-2.0
"""One request through a model: preprocess, predict, postprocess, and what comes of the result.

An answer is (status, bytes, media type). When a stream is wanted, its pieces leave by `emit` as they
are made; the answer that ends it is the whole. Errors are those of errors.py.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import json
import logging
import re
import sys
import time

from . import bodies, errors, frames, methods, requests

THREADS_MIN = 4
WEBSOCKET = "WEBSOCKET"  # as the method of a route
PING_SECONDS = 20  # of a websocket, as uvicorn, which the Truss server runs in

# What a probe asks with GET, and what is answered to it if that needs no thought.
PROBES = {"live": b"true", "loaded": b"{}", "ready": None, "schema": None}

# Paths of the Truss server, in its order; one may be of two, by its method.
ROUTES = [(re.compile(re.escape(path)), name) for path, name in methods.ROUTES.items()] + [
    (re.compile("/"), "live"),
    (re.compile("/ping"), "loaded"),
    (re.compile("/invocations"), "predict"),
    (re.compile("/v1/models/[^/]+"), "ready"),
    (re.compile("/v1/models/[^/]+/loaded"), "loaded"),
    (re.compile("/v1/models/[^/]+/schema"), "schema"),
    (re.compile("/v1/models/[^/]+:predict(_binary)?"), "predict"),
]


class Answer:
    def __init__(self, data, media_type, status=200):
        self.data = data
        self.media_type = media_type
        self.status = status


class Whole:
    """The pieces of an answer, one behind the other."""

    def __init__(self):
        self._parts = bytearray()

    def add(self, piece):
        self._parts += piece
        if len(self._parts) > frames.FD_SIZE_MAX:
            raise ValueError("the stream is over the limit of 256 MiB")

    def bytes(self):
        return bytes(self._parts)


def _carry_out(function, arguments):
    """(value, None) or (None, exception): StopIteration cannot travel in a future."""
    try:
        return function(*arguments), None
    except BaseException as error:  # also SystemExit: it ends the request, not the host
        return None, error
    finally:
        sys.stdout.flush()


class Runner:
    def __init__(self, methods_found, concurrency, stream_gap_s, slots):
        self.methods = methods_found
        self.semaphore = asyncio.Semaphore(concurrency)
        self.stream_gap_s = stream_gap_s
        self.pings = (PING_SECONDS, PING_SECONDS)  # interval and timeout, of websockets
        self.pool = concurrent.futures.ThreadPoolExecutor(
            max(slots, concurrency) + THREADS_MIN, thread_name_prefix="model"
        )
        self.predict_count = 0
        self.busy_us = 0

    # ---- the model's code ----

    async def _in_thread(self, function, *arguments):
        """Waits for its end, whatever happens: a thread cannot be stopped from outside."""
        context = contextvars.copy_context()
        value, error = await asyncio.get_running_loop().run_in_executor(
            self.pool, context.run, _carry_out, function, arguments
        )
        if error is not None:
            raise error
        return value

    async def interruptible(self, call, awaitable):
        """Lets a cancel in while the model's own async code runs."""
        call.interruptible = True
        try:
            return await awaitable
        finally:
            call.interruptible = False

    @contextlib.contextmanager
    def intercept(self, call, keep=False):
        """What the model's code raises is logged, and is a UserCodeError; keep: what it was."""
        try:
            yield
        except (errors.Disconnected, errors.StreamGap):
            raise
        except asyncio.CancelledError as error:
            if call.canceled.is_set():
                raise
            logging.error(errors.USER_CODE_TEXT, exc_info=error)
            raise errors.UserCodeError("the model's code canceled itself") from error
        except BaseException as error:
            if errors.is_a(error, "fastapi", "HTTPException"):
                logging.error("Model raised HTTPException", exc_info=error)
                raise
            logging.error(errors.USER_CODE_TEXT, exc_info=error)
            if keep and isinstance(error, Exception):
                raise
            raise errors.UserCodeError(str(error)) from error

    async def _execute(self, call, method, inputs, request):
        call.check(method.name)
        arguments = method.arguments_of(inputs, request)
        with self.intercept(call):
            if method.is_generator:
                return method.call(*arguments)
            if method.is_async:
                return await self.interruptible(call, method.call(*arguments))
            return await self._in_thread(method.call, *arguments)

    # ---- streams ----

    async def _pieces(self, call, generator, keep):
        """The pieces of either kind of generator; none after a cancel."""
        done = object()
        is_async = inspect.isasyncgen(generator)
        try:
            while True:
                if call.canceled.is_set():
                    raise errors.Disconnected("Client disconnected while it was answered.")
                begun = time.monotonic()
                with self.intercept(call, keep):
                    if is_async:
                        piece = await self.interruptible(call, self._next(generator, done))
                    else:
                        piece = await self._in_thread(next, generator, done)
                if piece is done:
                    return
                if time.monotonic() - begun > self.stream_gap_s:
                    raise self._gap()
                yield piece
        finally:
            await self._close(call, generator, is_async)

    def _gap(self):
        return errors.StreamGap(
            "no piece of the stream came for %g s (runtime.streaming_read_timeout)"
            % self.stream_gap_s
        )

    async def _next(self, generator, done):
        """In the call's own task, as in the Truss server: what a generator has set in its context it
        must be able to take back."""
        task, over = asyncio.current_task(), []
        await asyncio.sleep(0)  # others have their turn, also if it never waits

        def on_gap():
            over.append(True)
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self.stream_gap_s, on_gap)
        try:
            return await generator.__anext__()
        except StopAsyncIteration:
            return done
        except asyncio.CancelledError:
            if not over:
                raise
            raise self._gap() from None
        finally:
            timer.cancel()
            if over and hasattr(task, "uncancel"):
                task.uncancel()

    async def _close(self, call, generator, is_async):
        try:
            if is_async:
                await generator.aclose()
            else:
                await self._in_thread(generator.close)
        except Exception as error:
            logging.warning("request %s: closing its stream: %r", call.job, error)

    async def _each(self, call, generator, take, keep=False):
        """Awaits take(piece) for each piece; the generator is closed at the end of it."""
        pieces = self._pieces(call, generator, keep)
        try:
            async for piece in pieces:
                await take(piece)
        finally:
            await pieces.aclose()

    async def _stream(self, call, emit, generator):
        """The pieces as bytes; nobody is sent them before the end who does not want a stream."""
        whole = Whole()

        async def take(piece):
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                with self.intercept(call):
                    piece = piece.encode("utf-8")
            whole.add(piece)
            if call.stream:
                await emit(bytes(piece), bodies.BINARY)

        await self._each(call, generator, take)
        return Answer(whole.bytes(), bodies.BINARY)

    async def _gather(self, call, generator):
        """The whole stream as one text: what a client that accepts only JSON is given. What breaks it
        is told to the client, as the Truss server does."""
        whole = Whole()

        async def take(piece):
            whole.add(piece if isinstance(piece, (bytes, bytearray)) else str(piece).encode())

        await self._each(call, generator, take, keep=True)
        return whole.bytes().decode()

    async def _of_generator(self, call, emit, generator):
        if call.stream:
            return await self._stream(call, emit, generator)
        return await self._gather(call, generator)

    async def _of_response(self, call, emit, request, response):
        """A starlette Response says itself what it sends."""
        start, whole = {}, Whole()
        streams = call.stream and errors.is_a(
            response, "starlette.responses", "StreamingResponse"
        )

        def media_type():
            headers = {k.decode().lower(): v.decode("latin-1") for k, v in start["headers"]}
            return headers.get("content-type", bodies.BINARY)

        async def send(message):
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body = bytes(message.get("body", b""))
            whole.add(body)
            if streams and start["status"] == 200 and body:  # a piece can say no other status
                await emit(body, media_type())

        async def receive():
            await call.canceled.wait()
            return {"type": "http.disconnect"}

        with self.intercept(call):
            await self.interruptible(call, response(request.scope, receive, send))
        if call.canceled.is_set():
            raise errors.Disconnected("Client disconnected while it was answered.")
        return Answer(whole.bytes(), media_type(), start["status"])

    # ---- the whole of it ----

    def _forbid_postprocess(self, what):
        if self.methods.postprocess is not None:
            logging.error("%s, you cannot use postprocessing.", what)
            raise errors.UserCodeError("%s, you cannot use postprocessing." % what)

    async def _predict(self, call, emit, inputs, request):
        found = self.methods
        if found.preprocess is not None:
            inputs = await self._execute(call, found.preprocess, inputs, request)
        await self.interruptible(call, self.semaphore.acquire())
        begun = time.monotonic()
        try:
            result = await self._execute(call, found.predict, inputs, request)
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                self._forbid_postprocess("If the predict function streams")
                return await self._of_generator(call, emit, result)
            if errors.is_a(result, "starlette.responses", "Response"):
                self._forbid_postprocess("If the predict function returns a response")
                return await self._of_response(call, emit, request, result)
        finally:
            self.semaphore.release()
            self.predict_count += 1
            self.busy_us += int((time.monotonic() - begun) * 1e6)
        if found.postprocess is not None:
            result = await self._execute(call, found.postprocess, result, request)
        return result

    async def _route(self, call, emit, name, inputs, request):
        method = self.methods.routes.get(name)
        if method is None:
            raise errors.ModelMethodNotImplemented(
                "`%s` must only be called if model has it." % name
            )
        result = await self._execute(call, method, inputs, request)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            return await self._of_generator(call, emit, result)
        return result

    async def _settle(self, call, emit, request, result):
        """The answer in what a method returned."""
        if isinstance(result, Answer):
            return result
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            result = await self._stream(call, emit, result)  # of postprocess: a stream for everybody
        elif errors.is_a(result, "starlette.responses", "Response"):
            result = await self._of_response(call, emit, request, result)
        if isinstance(result, Answer):
            return result
        data, media_type = bodies.write(result, bodies.is_binary(call.media_type))
        return Answer(data, media_type)

    async def _call_method(self, call, emit, name):
        request = await requests.make(call)
        inputs = None
        if not self.methods.skip_parsing:
            inputs = bodies.read(call.body, call.media_type, self.methods.input_type)
        if name == "predict":
            if self.methods.predict is None:
                raise errors.ModelMethodNotImplemented("this model has only a `websocket` method")
            result = await self._predict(call, emit, inputs, request)
        else:
            result = await self._route(call, emit, name, inputs, request)
        return await self._settle(call, emit, request, result)

    async def is_healthy(self):
        """None: the model has no such method, or does not say."""
        method = self.methods.is_healthy
        if method is None:
            return None
        try:
            if method.is_async:
                said = await method.call()
            else:
                said = await self._in_thread(method.call)
            return None if said is None else bool(said)
        except Exception as error:
            logging.error("Exception while checking if model is healthy", exc_info=error)
            return False

    async def _ready(self):
        if await self.is_healthy() is False:
            text = errors.body_of("Model with name model is not ready.")
            return Answer(text, bodies.JSON, 503)
        return Answer(b"{}", bodies.JSON)

    def _schema(self):
        schema = self.methods.schema()
        if schema is None:
            return Answer(errors.body_of("No schema found"), bodies.JSON, 404)
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
        return Answer(text.encode(), bodies.JSON)

    async def answer(self, call, emit):
        """emit(bytes, media type) is awaited for each piece of a stream."""
        if call.method == WEBSOCKET:
            from . import sockets  # most models never have one, and all of them start

            said = await sockets.answer(self, call)
            if said is None:
                return Answer(b'{"detail":"Not Found"}', bodies.JSON, 404)
            return Answer(said, bodies.JSON)
        found = [name for pattern, name in ROUTES if pattern.fullmatch(call.path)]
        for name in found:
            if name not in PROBES and call.method == "POST":
                return await self._call_method(call, emit, name)
            if name in PROBES and call.method == "GET":
                if name == "ready":
                    return await self._ready()
                return self._schema() if name == "schema" else Answer(PROBES[name], bodies.JSON)
        if found:
            return Answer(b'{"detail":"Method Not Allowed"}', bodies.JSON, 405)
        return Answer(b'{"detail":"Not Found"}', bodies.JSON, 404)
