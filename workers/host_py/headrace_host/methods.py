# SPDX-License-Identifier: Apache-2.0
"""What methods a model has and how each is called: the signatures of the Truss contract."""

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator

from . import errors

NONE, INPUTS, REQUEST, INPUTS_AND_REQUEST = "none", "inputs", "request", "inputs and request"

ROUTES = {
    "/v1/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
}
OPTIONAL = tuple(ROUTES.values()) + ("preprocess", "postprocess", "setup_environment", "is_healthy")


def _is_request(annotation):
    kind = errors.loaded("starlette.requests", "Request")
    return kind is not None and isinstance(annotation, type) and issubclass(annotation, kind)


def _arguments(method, name):
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    if len(parameters) == 0:
        return NONE
    if len(parameters) == 1:
        return REQUEST if _is_request(parameters[0].annotation) else INPUTS
    if len(parameters) > 2:
        raise errors.ModelDefinitionError(
            "`%s` method cannot have more than two arguments. Got: %s" % (name, signature)
        )
    if _is_request(parameters[0].annotation):
        raise errors.ModelDefinitionError(
            "`%s` method with two arguments is not allowed to have request as first argument, "
            "request must be second. Got: %s" % (name, signature)
        )
    if not _is_request(parameters[1].annotation):
        raise errors.ModelDefinitionError(
            "`%s` method with two arguments must have request as second argument (type "
            "annotated). Got: %s" % (name, signature)
        )
    return INPUTS_AND_REQUEST


class Method:
    def __init__(self, method, name):
        self.name = name
        self.call = method
        self.arguments = _arguments(method, name)
        self.is_async = inspect.iscoroutinefunction(method)
        self.is_generator = inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(
            method
        )

    def arguments_of(self, inputs, request):
        return {
            NONE: (),
            INPUTS: (inputs,),
            REQUEST: (request,),
            INPUTS_AND_REQUEST: (inputs, request),
        }[self.arguments]


# ---- schema ----


def _is_model(annotation):
    base = errors.loaded("pydantic", "BaseModel")
    try:
        return base is not None and issubclass(annotation, base)
    except TypeError:
        return False


def _origin_is(annotation, kinds):
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, kinds)


def _awaited(annotation):
    if not _origin_is(annotation, Awaitable):
        return None
    inner = typing.get_args(annotation)[0]
    return inner if _is_model(inner) else None


def _output(annotation):
    """(pydantic model or None, streams) of a return annotation; None: it says nothing."""
    generators = (Generator, AsyncGenerator, Iterator, AsyncIterator)
    if _is_model(annotation):
        return annotation, False
    if _origin_is(annotation, generators):
        return None, True
    if _origin_is(annotation, Awaitable):
        inner = _awaited(annotation)
        return None if inner is None else (inner, False)
    if typing.get_origin(annotation) is typing.Union:
        arguments = typing.get_args(annotation)
        models = [_awaited(a) or a for a in arguments if _awaited(a) or _is_model(a)]
        streams = [a for a in arguments if _origin_is(a, generators)]
        if len(arguments) == 2 and len(models) == 1 and len(streams) == 1:
            return models[0], True
    return None


class Methods:
    """All of a model's; raises ModelDefinitionError for what the contract forbids."""

    def __init__(self, model):
        found = {
            name: Method(getattr(model, name), name)
            for name in OPTIONAL + ("predict", "websocket")
            if hasattr(model, name)
        }
        self.predict = found.get("predict")
        self.preprocess = found.get("preprocess")
        self.postprocess = found.get("postprocess")
        self.websocket = found.get("websocket")
        self.is_healthy = found.get("is_healthy")
        self.setup_environment = found.get("setup_environment")
        self.routes = {name: found[name] for name in ROUTES.values() if name in found}
        self.input_type = self.output_type = self.streams = None
        self._check()
        if self.predict is not None:
            self._read_schema()
        self.skip_parsing = self.predict is not None and self.predict.arguments == REQUEST

    def _check(self):
        def refuse(text):
            raise errors.ModelDefinitionError(text)

        if self.is_healthy is not None and self.is_healthy.arguments != NONE:
            refuse("`is_healthy` must have only one argument: `self`.")
        if self.websocket is not None:
            if self.predict or self.preprocess or self.postprocess:
                refuse(
                    "Truss model cannot have both `websocket` and any of `predict`, "
                    "`preprocess`, or `postprocess methods."
                )
            if self.websocket.arguments != INPUTS:
                refuse("`websocket` must have only one argument: `websocket`.")
            if not self.websocket.is_async:
                refuse("`websocket` endpoints must be async function definitions.")
            return
        if self.predict is None:
            refuse("Truss model must have a `predict` or `websocket` method.")
        if self.preprocess and self.predict.arguments == REQUEST:
            refuse(
                "When using `preprocess`, the predict method cannot only have the request "
                "argument (because the result of `preprocess` would be  discarded)."
            )
        if self.postprocess and self.postprocess.arguments == REQUEST:
            refuse(
                "The `postprocess` method cannot only have the request argument (because the "
                "result of `predict` would be discarded)."
            )

    def _read_schema(self):
        first = self.preprocess or self.predict
        last = self.postprocess or self.predict
        parameters = list(inspect.signature(first.call).parameters.values())
        if parameters and _is_model(parameters[0].annotation):
            self.input_type = parameters[0].annotation
        output = _output(inspect.signature(last.call).return_annotation)
        if output is not None:
            self.output_type, self.streams = output

    def schema(self):
        """What GET /v1/models/model/schema answers; None: the model says nothing of its types."""
        if self.input_type is None and self.output_type is None and self.streams is None:
            return None

        def of(kind):
            return None if kind is None else kind.schema()

        return {
            "input_schema": of(self.input_type),
            "output_schema": of(self.output_type),
            "supports_streaming": self.streams,
        }
