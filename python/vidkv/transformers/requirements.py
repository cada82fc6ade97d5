"""What this package needs beside the library; without it, one line that says what to install."""
try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"vidkv.transformers needs {error.name}: pip install 'vidkv[transformers]'", name=error.name) from None
