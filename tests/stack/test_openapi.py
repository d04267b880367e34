# SPDX-License-Identifier: Apache-2.0
"""Goal: /openapi.json is true: every answer of the running gateway is one that it documents.

Method: schemathesis makes requests from the document, good and bad ones, and checks each answer's
status, type and shape against it. Not pushes and bindings: each would start workers
(tests/stack/test_api.py) or clients of clusters that are none (tests/stack/test_topics.py); nor websockets,
whose handshake is no header that a document can ask for (tests/stack/test_websocket.py); nor training
jobs, their workspaces and the twins of their GET routes (tests/stack/test_training_api.py); nor batches,
which take fields that nobody knows, but no number past 64 bits in them (tests/stack/test_bulk.py); of
sync calls one target and three methods, since a name that is not known takes 0.1 s to be looked up.
"""

import json
import os
import pathlib
import subprocess
import sys

EXAMPLES = os.environ.get("HEADRACE_TEST_EXAMPLES", "5")


def test_document_and_gateway_agree(stack):
    stack.push_sim("sim")
    pid = stack.services()["gateway"]["pid"]
    document = stack.data_dir / "openapi.json"
    served = stack.http("GET", "/openapi.json", key=None)
    tree = pathlib.Path(__file__).resolve().parents[2] / "schema" / "openapi.json"
    assert served.json == json.loads(tree.read_text())
    document.write_bytes(served.body)
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / "schemathesis", "run", document, "--url",
         stack.url("gateway"), "-H", f"Authorization: Bearer {stack.key}", "--seed", "1", "--workers", "1",
         "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing", "--no-color",
         "--generation-database", "none", "--request-timeout", "20", "--exclude-operation-id-regex",
         "^(push|bindTopic|createBatch|websocket|sendTrainingArchive|createTrainingJob|postTraining(Logs|Metrics)|(predict|wake)(Development|Environment|Deployment)|passthrough(Head|Put|Patch|Delete)|"
         "(getResult|follow|cancel)OfChain|queueOfChain(Development|Environment|Deployment)|deactivateChainDeployment)$"],
        cwd=stack.data_dir, capture_output=True, text=True, timeout=540)
    failures = done.stdout.partition("= FAILURES =")[2].partition("= WARNINGS =")[0] or done.stdout[-8000:]
    assert done.returncode == 0, failures[-20000:] + done.stderr[-2000:]
    assert stack.services()["gateway"]["pid"] == pid  # none of it took the gateway down
    assert stack.http("GET", "/readyz", key=None).status == 200
