# SPDX-License-Identifier: Apache-2.0
"""A generator: each piece reaches the client as it is made."""

import time


class Model:
    def predict(self, model_input):
        words = str(model_input["text"]).split()
        pause_s = float(model_input.get("pause_s", 0))
        for word in words:
            time.sleep(pause_s)
            yield word.upper() + " "
