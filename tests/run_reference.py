"""Run llama.cpp's own converter on several models, importing torch and transformers once.

    python run_reference.py HOME CONSTANTS < JOBS

HOME is the folder with convert_hf_to_gguf.py; JOBS is JSON, a list of lists of arguments. CONSTANTS is JSON, too:
attributes of its classes by "module.Class.NAME", and their values. Ends with 1 at the first job that fails, with its
output.
"""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Run the jobs, each in a fork."""
    home = Path(sys.argv[1])
    sys.path[:0] = [str(home / "gguf-py"), str(home)]
    import conversion  # type: ignore[import-not-found]
    import torch  # type: ignore[import-not-found, unused-ignore]
    import transformers  # type: ignore[import-not-found, unused-ignore] # noqa: F401

    torch.set_num_threads(1)
    # Torch's own root of single precision, MKL's, is off by one in the last place in 17 % of the values.
    root = torch.sqrt
    torch.sqrt = lambda values: root(values.double()).to(values.dtype)
    conversion.load_all_models()
    for place, value in json.loads(sys.argv[2]).items():
        module, name, attribute = place.split(".")
        setattr(getattr(sys.modules[f"conversion.{module}"], name), attribute, value)
    for job in json.load(sys.stdin):
        with tempfile.TemporaryFile() as log:
            child = os.fork()
            if not child:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                sys.argv = [str(home / "convert_hf_to_gguf.py"), *job]
                runpy.run_path(sys.argv[0], run_name="__main__")
                sys.stdout.flush()
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                log.seek(0)
                sys.exit(log.read().decode(errors="replace"))


if __name__ == "__main__":
    main()
