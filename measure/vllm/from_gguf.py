#!/usr/bin/env python3
"""Writes the weights and the tokenizer of a GGUF into a folder that vLLM reads, as numbers of 32 bits: what `vidkv eval` measures on.

    from_gguf.py MODEL.gguf FOLDER        (transformers reads the file with PyPI's gguf and accelerate)"""
import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder")
    arguments = parser.parse_args()
    file = {"pretrained_model_name_or_path": str(arguments.gguf.resolve().parent), "gguf_file": arguments.gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # which may be saved: that read from a GGUF may not
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(arguments.folder)
    AutoTokenizer.from_pretrained(**file).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
