# SPDX-License-Identifier: Apache-2.0
"""host-py: runs the user code of a Truss. A worker starts it; its socket is descriptor 3.

    python3 host_py           first half: says HELLO, gets LOAD, makes the model's environment
    PYTHON host_py --loaded   second half, in that environment: loads the model and serves

Our own modules are in one package of a name that nobody else has, and our folder leaves sys.path
before user code is imported, so nothing of ours is in the way of what the model imports.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))
# With a folder as its program, Python puts that folder first.
sys.path = [_FOLDER] + [p for p in sys.path if os.path.abspath(p or ".") != _FOLDER]

if sys.argv[1:2] == ["--loaded"]:
    from headrace_host import serve

    sys.path.remove(_FOLDER)
    serve.main()
else:
    from headrace_host import start

    start.main(_FOLDER)
