"""python -m vidkv COMMAND: the programs that come with the package."""
import argparse
import importlib
import sys

COMMANDS = {"demo": "asks a video model about a video, its keys and values packed",
            "bench": "measures the caches of transformers and VidKV's on one prompt",
            "cuda_bench": "attention on a GPU, against scaled_dot_product_attention",
            "benchmark": "runs the paper's benchmarks through lmms-eval with any cache"}


def main(arguments=None):
    listed = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(prog="python -m vidkv", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=f"Programs of VidKV for transformers:\n\n{listed}\n\n"
                                                 "python -m vidkv COMMAND --help says what each takes.")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 0
    command = parser.parse_args(arguments[:1]).command
    module = "benchmark.__main__" if command == "benchmark" else command
    try:
        return importlib.import_module(f".{module}", __package__).main(arguments[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"vidkv {command} needs {error.name}: pip install 'vidkv[demo]'")


if __name__ == "__main__":
    sys.exit(main())
