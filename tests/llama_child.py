"""Ask llama.cpp one question: a script that reads it as JSON on standard input, and writes the answer, as JSON.

``llama_client.py`` starts it, in a process of its own.
"""

import importlib
import json
import sys
from typing import Any


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Load a question's two files and ask. xllamacpp has no type information, hence `importlib` and `Any`."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = question["model"]
    params.mmproj.path = question["mmproj"]
    params.n_ctx = question["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.verbosity = 4  # The level at which the hyperparameters of the vision tower are logged.
    server = xllamacpp.Server(params)
    response: dict[str, Any] = server.handle_chat_completions(
        {
            "messages": [{"role": "user", "content": [question["medium"], {"type": "text", "text": question["text"]}]}],
            "max_tokens": question["max_tokens"],
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": question["top_logprobs"],
        }
    )
    return response


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin))))
