"""One set of weights, taken apart: ``python -m lit_backdoor analyze``."""
