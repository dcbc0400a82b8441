"""Round trips of Hugging Face folders against transformers and ONNX Runtime.

    python tests/measure/folders.py FP8C FOLDER..

For each folder, in f32 on the CPU: logits of the first weights; 20 steps of training, exported as a folder and as ONNX, and the logits of both; 100
greedy tokens, or as many as the model has positions for. Needs torch, transformers, safetensors, onnxruntime and numpy. `testdata/hf/make.py` makes small folders.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

PROMPT = [5, 17, 20, 33, 41, 7, 14, 9]
TOKENS = 100


def reference(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager")
    return model.eval(), {key: names for key, names in info.items() if names}


def greedy(model, count):
    """Each token the likeliest, whatever the folder's generation_config says."""
    ids = torch.tensor([PROMPT])
    for _ in range(count):
        token = model(ids).logits[0, -1].argmax().item()
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        if token == model.config.eos_token_id:
            break
    return ids[0, len(PROMPT) :].tolist()


def check(fp8c, folder):
    here = Path(tempfile.mkdtemp(dir=folder.resolve().parent, prefix=".round-trip-"))
    run = lambda *a: subprocess.run([fp8c, *map(str, a)], check=True, capture_output=True, text=True).stdout
    config = json.loads((folder / "config.json").read_text())
    positions = config.get("max_position_embeddings") or config["n_positions"]
    length = min(positions, len(PROMPT) + TOKENS)
    random = np.random.default_rng(0)
    ids = random.integers(0, config["vocab_size"], (1, length), dtype=np.int64)
    data = here / "tokens.bin"
    random.integers(0, config["vocab_size"], 40 * length, dtype=np.uint16).tofile(data)
    save_file({"input_ids": ids}, here / "in.safetensors")

    def ours(*checkpoint):
        run("run", here / "infer.plan", "--inputs", here / "in.safetensors", "--outputs", here / "out.safetensors", "-q", *checkpoint)
        return load_file(here / "out.safetensors")["logits"]

    def theirs(model):
        return model(torch.from_numpy(ids)).logits.numpy()

    common = ["--precision", "f32", "--target", "cpu", "-q"]
    # A model lies in a folder around its weights.
    model = folder.resolve().parent / f"{here.name}.json"
    try:
        run("new", "--from", folder, "--batch", 1, "--seq", length, "-o", model)
        run("compile", model, "--infer", "-o", here / "infer.plan", *common)
        run("compile", model, "--mem", "1G", "-o", here / "train.plan", *common)
        first, _ = reference(folder)
        before = np.abs(ours() - theirs(first)).max()
        got = json.loads(run("generate", here / "train.plan", "--prompt-tokens", ",".join(map(str, PROMPT)), "--tokens", length - len(PROMPT), "--json"))
        run("train", here / "train.plan", "--data", data, "--token-width", 16, "--steps", 20, "--lr", 1e-3, "--checkpoint", here / "ck", "-q")
        run("export", here / "train.plan", "--checkpoint", here / "ck", "--hf", here / "trained", "-o", here / "trained.onnx")
        trained, lacking = reference(here / "trained")
        mine = ours("--checkpoint", here / "ck")
        session = onnxruntime.InferenceSession(here / "trained.onnx", providers=["CPUExecutionProvider"])
        onnx = session.run(None, {"input_ids": ids})[0]
        equal = got["tokens"] == greedy(first, length - len(PROMPT))
        after, moved = np.abs(mine - theirs(trained)).max(), np.abs(theirs(trained) - theirs(first)).max()
        print(
            f"| {folder.name} | {before:.1e} | {after:.1e} | {moved:.1e} | {'nothing' if not lacking else lacking} "
            f"| {np.abs(onnx - mine).max():.1e} | {'equal' if equal else 'DIFFERENT'} | {got['tokens_per_second']:.0f} |"
        )
    finally:
        model.unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", here], check=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    print("| folder | logits | trained | moved by | missing at load | ONNX Runtime | greedy tokens | tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in sys.argv[2:]:
        check(sys.argv[1], Path(name))
