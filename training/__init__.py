"""Models, teachers, data, and the commands that train and evaluate them."""

import warnings

warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"torch\.jit"
)  # CompressAI compiles a function with it
