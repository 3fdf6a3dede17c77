"""Makes the files that the decoder benchmark's peers read, each command in the virtual environment
that has the library.

Owns: the Hugging Face folder written out from a GGUF, the token ids of the fixed text, other GGUF
types of the same model, and random checkpoints in the shapes of larger models. Knows nothing of
timing. The exporters of OpenVINO and ONNX Runtime are programs of their own; benchmarks/README.md
gives their command lines.

    python prepare.py checkpoint --gguf MODEL.gguf --out HF_FOLDER           (torch, transformers,
    gguf) python prepare.py ids --text FILE[.gz] --after REGEX --tokenizer HF_FOLDER --out IDS.json
    (tokenizers) python prepare.py quantize --gguf IN.gguf --type q4_0 --out OUT.gguf
    (llama-cpp-python) python prepare.py random --shape qwen2.5-0.5b --tokenizer HF_FOLDER --out
    HF_FOLDER  (torch, transformers) python prepare.py gguf --checkpoint HF_FOLDER --out OUT.gguf
    (torch, safetensors, gguf)
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED = 20_240_607  # of the random checkpoints: the same files on every machine

# Public shapes of well-known models; the weights are random, so only speed can be measured on them.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
    },
}


def write_checkpoint(gguf: Path, out: Path) -> None:
    """Writes a GGUF's dequantized weights and its tokenizer as a bfloat16 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers refuses to save a model that it loaded from GGUF, hence the fresh one.
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def text_after(path: Path, pattern: str) -> str:
    """The text behind the last match of `pattern`, every run of white space made one blank."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    matches = list(re.finditer(pattern, text, re.MULTILINE)) if pattern else []
    if pattern and not matches:
        raise SystemExit(f"--after {pattern!r}: no such place in {path}")
    start = matches[-1].end() if matches else 0
    return re.sub(r"\s+", " ", text[start:]).strip()


def write_ids(text_path: Path, after: str, tokenizer_folder: Path, out: Path, count: int) -> None:
    """Writes {"text", "ids"}: the first `count` tokens of the text, without special tokens."""
    from tokenizers import Tokenizer

    text = text_after(text_path, after)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    encoding = tokenizer.encode(text[: count * 8], add_special_tokens=False)
    ids = encoding.ids[:count]
    if len(ids) < count:
        raise SystemExit(f"{text_path}: has {len(ids)} tokens, {count} are needed")
    out.write_text(json.dumps({"text": text[: encoding.offsets[count - 1][1]], "ids": ids}))


def quantize_gguf(gguf: Path, kind: str, out: Path) -> None:
    """Writes the model as another GGUF type, by llama.cpp's own quantizer."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    types = {
        "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
        "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
        "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    }
    if kind not in types:
        raise SystemExit(f"--type {kind}: not one of {', '.join(types)}")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = types[kind]
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(gguf).encode(), str(out).encode(), parameters) != 0:
        raise SystemExit(f"llama_model_quantize of {gguf} to {kind} failed")


def write_random(shape: str, tokenizer_folder: Path, out: Path) -> None:
    """Writes a bfloat16 checkpoint of random weights; the tokenizer is borrowed, because exporters
    insist on one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape not in SHAPES:
        raise SystemExit(f"--shape {shape}: not one of {', '.join(SHAPES)}")
    torch.manual_seed(SEED)
    options = dict(SHAPES[shape])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config.bos_token_id, config.eos_token_id = 1, 2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if model.generation_config is not None:
        model.generation_config.bos_token_id, model.generation_config.eos_token_id = 1, 2
    model.save_pretrained(out)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
    ):
        if (tokenizer_folder / name).exists():
            shutil.copy(tokenizer_folder / name, out / name)


def permuted(weight: Any, heads: int) -> Any:
    """Rows of a Llama q or k projection, from rotate-half order to the interleaved order that GGUF
    stores.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def gguf_tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(GGUF name, float32 array) of every tensor of a checkpoint of model type llama or qwen2."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open

    arch = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2}[config["model_type"]]
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 -- no mapping
                array = file.get_tensor(key).to(torch.float32).numpy()
                projection = key.split(".")[-2]
                if config["model_type"] == "llama" and projection in heads:
                    array = permuted(array, heads[projection])
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise SystemExit(f"{path}: no GGUF name for tensor {key}")
                yield name, array


def write_gguf(folder: Path, out: Path) -> None:
    """Writes a Hugging Face folder as a float16 GGUF without vocabulary (token ids in, token ids
    out).
    """
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in ("llama", "qwen2"):
        raise SystemExit(f"{folder}: model_type {config['model_type']} is not llama or qwen2")
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(out, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, array in gguf_tensors(folder, config):
        writer.add_tensor(name, array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add: Callable[..., argparse.ArgumentParser] = commands.add_parser
    checkpoint = add("checkpoint", help="GGUF to a bfloat16 Hugging Face folder")
    checkpoint.add_argument("--gguf", type=Path, required=True)
    ids = add("ids", help="token ids of the fixed text")
    ids.add_argument("--text", type=Path, required=True)
    ids.add_argument(
        "--after", default="", help="regular expression; the text begins behind its last match"
    )
    ids.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    ids.add_argument("--tokens", type=int, default=16_384)
    quantize = add("quantize", help="GGUF to another GGUF type")
    quantize.add_argument("--gguf", type=Path, required=True)
    quantize.add_argument("--type", required=True)
    random = add("random", help="a random checkpoint in the shape of a larger model")
    random.add_argument("--shape", required=True, choices=sorted(SHAPES))
    random.add_argument("--tokenizer", type=Path, required=True)
    gguf = add("gguf", help="Hugging Face folder to a GGUF without vocabulary")
    gguf.add_argument("--checkpoint", type=Path, required=True)
    for command in (checkpoint, ids, quantize, random, gguf):
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    if options.command == "checkpoint":
        write_checkpoint(options.gguf, options.out)
    elif options.command == "ids":
        write_ids(options.text, options.after, options.tokenizer, options.out, options.tokens)
    elif options.command == "quantize":
        quantize_gguf(options.gguf, options.type, options.out)
    elif options.command == "random":
        write_random(options.shape, options.tokenizer, options.out)
    else:
        write_gguf(options.checkpoint, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
