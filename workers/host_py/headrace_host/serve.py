# SPDX-License-Identifier: Apache-2.0
"""The second half of host-py, in the model's own environment: load, then answer requests.

One asyncio loop. Sync code of the model runs in threads, async code on the loop. Every REQ ends in
one final EVT; its slot is free again only when the model's code has ended, so that a model never
runs more than it was promised to. Whoever cannot be stopped (a thread that ignores its cancel) is
the worker's to kill.
"""

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import traceback

from . import errors, frames, logs, model, msgpack, place, requests, run
from .link import Gone, Link, read_fd

UNSENT_MAX = 4 << 20  # a stream waits for the worker beyond it
HEALTH_SECONDS = 10
HEALTH_LIMIT_SECONDS = 1800


def media_type_of(text):
    """As a frame says it: nothing is JSON."""
    return None if text == "application/json" else frames.cut(text, 255)


def tell_load_error(error):
    """Logs why a model could not be loaded, and returns it with the model's own last lines."""
    if isinstance(error, (errors.LoadError, errors.ModelDefinitionError)):  # says it all
        said = isinstance(error, errors.ModelDefinitionError)
        shown = "%s%s" % ("ModelDefinitionError: " if said else "", error)
        logging.error("Model cannot be loaded: %s", shown)
        return shown
    shown = "".join(traceback.format_exception_only(type(error), error)).strip()
    logging.error("Exception while loading model", exc_info=error)
    return "%s\n%s" % (shown, logs.tail())


class Host:
    def __init__(self, link, load, settings):
        self.link = link
        self.load = load
        self.settings = settings
        self.config = settings["truss"]
        self.chainlets = settings.get("chainlets", "")
        self.runner = None
        self.calls = {}
        self.granted = 0
        self.received = 0
        self.draining = False
        self.blocked = False
        self.flush_asked = False
        self.room = None
        self.unhealthy_since = None
        self.counts = {"output_count": 0, "error_count": 0, "oom_count": 0}
        self.stats = None

    # ---- frames out ----

    def send(self, kind, /, **fields):
        self.link.send(kind, **fields)
        if not self.flush_asked and not self.blocked:
            self.flush_asked = True
            self.loop.call_soon(self.flush)

    def flush(self):
        self.flush_asked = False
        try:
            all_left = self.link.flush()
        except Gone:
            self.end(0)
        if all_left == self.blocked:
            self.blocked = not all_left
            if self.blocked:
                self.loop.add_writer(self.link.sock, self.flush)
            else:
                self.loop.remove_writer(self.link.sock)
        if self.link.unsent_size <= UNSENT_MAX:
            self.room.set()

    async def wait_for_room(self):
        while self.link.unsent_size > UNSENT_MAX:
            self.room.clear()
            await self.room.wait()

    def end(self, code):
        """Nothing of the model is waited for: it may hang."""
        os._exit(code)

    def bye(self, code, error_class, reason, final):
        try:
            self.link.send_now(
                frames.BYE, error_class=error_class, reason=frames.cut(reason), final=final
            )
        except Gone:
            pass
        self.end(code)

    # ---- frames in ----

    def on_readable(self):
        try:
            self.link.receive()
            while True:
                frame = self.link.next()
                if frame is None:
                    return
                self.on_frame(*frame)
        except Gone:
            self.end(0)
        except frames.Malformed as error:
            self.bye(3, errors.LOST_WORKER, str(error), False)

    def on_frame(self, kind, fields):
        if kind == frames.REQ:
            self.on_req(fields)
        elif kind == frames.CANCEL:
            call = self.calls.get(fields.get("id"))
            if call is not None:
                call.cancel()
        elif kind == frames.DRAIN:
            self.draining = True
            if fields.get("haste"):
                for call in list(self.calls.values()):
                    call.cancel()
            self.end_when_drained()
        elif kind == frames.BYE:
            self.end(0)
        else:
            raise frames.Malformed("a frame came that only a host sends")

    def end_when_drained(self):
        if self.draining and not self.calls and self.runner is not None:
            self.bye(0, 0, "drained", False)

    def on_req(self, fields):
        if self.runner is None or self.received == self.granted:
            raise frames.Malformed("REQ came without credit")
        self.received += 1
        call = requests.Call(fields)
        refusal = "the host is draining" if self.draining else self.health_refusal()
        if refusal:
            self.fail(call, errors.MODEL_UNAVAILABLE, 503, refusal, errors.body_of(refusal))
            return
        self.calls[call.id] = call
        call.task = self.loop.create_task(self.carry_out(call))

    # ---- one request ----

    async def carry_out(self, call):
        logs.request_id.set(call.job)
        said = []

        async def emit(data, media_type):
            for at in range(0, len(data), frames.INLINE_MAX):
                self.send(
                    frames.EVT,
                    kind=frames.TOKENS,
                    id=call.id,
                    data=data[at : at + frames.INLINE_MAX],
                    output_type=None if said else media_type_of(media_type),
                )
                said.append(media_type)
            await self.wait_for_room()

        try:
            answer = await self.runner.answer(call, emit)
            if len(answer.data) > frames.FD_SIZE_MAX:
                raise ValueError("the output is over its limit of 256 MiB")
            self.finish(call, answer)
        except asyncio.CancelledError:
            self.fail_by(call, errors.Disconnected("canceled"))
        except Exception as error:
            self.fail_by(call, error)
        finally:
            self.calls.pop(call.id, None)
            self.end_when_drained()

    def finish(self, call, answer):
        if answer.status >= 300:
            error_class = errors.class_of_status(answer.status)
            text = answer.data.decode("utf-8", "replace")
            self.fail(call, error_class, answer.status, text, answer.data, answer.media_type)
            return
        self.counts["output_count"] += 1
        self.granted += 1
        self.send(
            frames.EVT,
            kind=frames.OUTPUT,
            id=call.id,
            data=answer.data,
            output_type=media_type_of(answer.media_type),
            http_status=answer.status,
            granted=self.granted,
            batch_count=1,
        )

    def fail_by(self, call, error):
        """Turns an exception into the answer of the Truss server, and tells the last log lines."""
        status, said = errors.status_of(error)
        try:
            body = errors.body_of(said)
        except (TypeError, ValueError) as wrong:  # the detail of an HTTPException can be anything
            body = errors.body_of("%r (%s)" % (said, wrong))
        error_class = errors.class_of(error, status)
        text = said if isinstance(said, str) else json.dumps(said, default=repr)
        if status >= 500:
            if not isinstance(error, errors.UserCodeError):
                logging.error("request failed", exc_info=error)
            text = "%s\n%s" % (text, logs.tail(call.job))
        self.fail(call, error_class, status, text, body)

    def fail(self, call, error_class, status, text, body, media_type="application/json"):
        self.counts["error_count"] += 1
        self.counts["oom_count"] += error_class == errors.OOM
        self.granted += 1
        self.send(
            frames.EVT,
            kind=frames.ERROR,
            id=call.id,
            error_class=error_class,
            http_status=status if 100 <= status < 600 else 500,
            text=frames.cut(text),
            data=body,
            output_type=media_type_of(media_type),
            granted=self.granted,
        )

    # ---- health and figures ----

    def health_limit(self, name):
        checks = self.config["runtime"].get("health_checks") or {}
        return checks.get(name) or HEALTH_LIMIT_SECONDS

    def health_refusal(self):
        """Why no request is taken now; None: they are."""
        since = self.unhealthy_since
        if since is None or self.loop.time() - since < self.health_limit(
            "stop_traffic_threshold_seconds"
        ):
            return None
        return "Model with name model is not ready: is_healthy says no"

    async def watch_health(self):
        while self.runner.methods.is_healthy is not None:
            await asyncio.sleep(HEALTH_SECONDS)
            healthy = await self.runner.is_healthy()
            now = self.loop.time()
            if healthy is not False:
                self.unhealthy_since = None
                continue
            logging.warning("Health check failed.")
            if self.unhealthy_since is None:
                self.unhealthy_since = now
            if now - self.unhealthy_since >= self.health_limit("restart_threshold_seconds"):
                text = "is_healthy said no for %d s\n%s" % (now - self.unhealthy_since, logs.tail())
                self.bye(3, errors.MODEL_UNAVAILABLE, text, False)

    async def tell_stats(self):
        while True:
            await asyncio.sleep(1)
            now = dict(
                self.counts,
                running_req_count=len(self.calls),
                step_count=self.runner.predict_count,
                step_req_count=self.runner.predict_count,
                step_busy_us=self.runner.busy_us,
            )
            if now != self.stats:
                self.stats = now
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                self.send(frames.STATS, host_size=peak, **now)

    # ---- life ----

    def load_model(self):
        """In a thread of its own; load() may take as long as it likes."""
        name = self.load.get("environment")
        environment = {"name": name} if name else None
        try:
            secrets = json.loads(self.load.get("secrets") or b"{}")
            loaded = model.load(os.getcwd(), self.config, secrets, environment, self.chainlets)
        except BaseException as error:
            sys.stdout.flush()
            text = tell_load_error(error)
            final = model.is_final(error)
            self.loop.call_soon_threadsafe(
                self.bye, 2, errors.MODEL_UNAVAILABLE, text, final
            )
            return
        sys.stdout.flush()
        self.loop.call_soon_threadsafe(self.on_loaded, loaded[1])

    def on_loaded(self, found):
        runtime = self.config["runtime"]
        concurrency = runtime.get("predict_concurrency") or 1
        slots = self.load.get("req_count_max") or concurrency
        gap_s = runtime.get("streaming_read_timeout") or 60
        self.runner = run.Runner(found, concurrency, gap_s, slots)
        transport = runtime.get("transport") or {}
        self.runner.pings = tuple(
            transport.get(name) or run.PING_SECONDS
            for name in ("ping_interval_seconds", "ping_timeout_seconds")
        )
        self.granted = slots
        self.send(
            frames.READY,
            engine="python",
            version="%d.%d.%d" % sys.version_info[:3],
            task="truss",
            detail=frames.cut(self.settings.get("python_detail", ""), 512),
            granted=slots,
        )
        self.tasks = [
            self.loop.create_task(self.watch_health()),
            self.loop.create_task(self.tell_stats()),
        ]
        self.end_when_drained()

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.room = asyncio.Event()
        self.room.set()
        self.loop.add_reader(self.link.sock, self.on_readable)
        threading.Thread(target=self.load_model, name="load", daemon=True).start()
        self.on_readable()  # what came before the reader was there
        await asyncio.Event().wait()


def main():
    state = msgpack.unpackb(read_fd(0, os.fstat(0).st_size))
    place.enter(state["folder"], state["load"]["dir"])
    os.environ.update(state["variables"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The model may write to any descriptor that it finds; ours is not at a place that it guesses.
    kept = os.dup(3)
    os.close(3)
    link = Link(socket.socket(fileno=kept), state["rest"])
    settings = json.loads(state["load"]["settings"])
    settings["python_detail"] = state["python_detail"]
    settings["chainlets"] = state["chainlets"]
    logs.open_logs(settings["truss"]["runtime"].get("enable_debug_logs", False))
    sys.argv = [settings["truss"]["model_class_filename"]]
    asyncio.run(Host(link, state["load"], settings).run())
