# SPDX-License-Identifier: Apache-2.0
"""The request itself, errors with a status, answers of another type, and a secret."""

from fastapi import HTTPException, Request
from fastapi.responses import Response


class Model:
    def __init__(self, secrets, environment):
        self._secrets = secrets
        self._environment = environment

    async def predict(self, model_input, request: Request):
        wanted = model_input.get("want")
        if wanted == "error":
            raise HTTPException(status_code=418, detail="no coffee here")
        if wanted == "text":
            return Response(content="plain words", media_type="text/plain")
        if wanted == "secret":
            return {"length": len(self._secrets["api_token"])}
        return {"environment": self._environment, "method": request.method}
