"""Makes the models of this folder: PyTorch exports with PyTorch's own losses and gradients.

    pip install torch==2.11.0 transformers onnx onnxscript safetensors
    python testdata/export.py

A case is a folder models/NAME:
    model.onnx          the forward graph, whose scalar output is the loss
    data/INPUT.npy      one array for each graph input; step i takes rows [i * batch, (i + 1) * batch), wrapping around
    reference.json      hyper-parameters and PyTorch's float32 loss before each AdamW update
    grads.safetensors   gradients at step 0, by PyTorch's parameter name
models/demo/model.onnx is the GPT-2 of `make demo`, without a reference.

labels/NAME.onnx is one GPT-2 whose loss takes its labels in different ways, and labels/reference.json PyTorch's losses on consecutive
windows of text.txt, with the tokens as labels (same) or the next tokens (next).
"""
import json
import pathlib
import warnings

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import transformers as T
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).resolve().parent
BATCH, SEQ, STEPS = 4, 32, 20
ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)


class TokenLoss(torch.nn.Module):
    """Mean cross-entropy of a language model, labels of -100 left out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels, attention_mask=None):
        extra = {} if attention_mask is None else {"attention_mask": attention_mask}
        logits = self.model(input_ids=input_ids, **extra).logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100)


class OwnLoss(torch.nn.Module):
    """The loss that the model itself computes from `labels`, which it shifts by one position."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels):
        return self.model(input_ids=input_ids, labels=labels).loss


class SlicedLoss(OwnLoss):
    """The same, as older models write it."""

    def forward(self, input_ids, labels):
        logits = self.model(input_ids=input_ids).logits[..., :-1, :].contiguous()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels[..., 1:].contiguous().view(-1))


class HiddenLoss(OwnLoss):
    """The same, with the last position left out before the head, and the classes on the second axis."""

    def forward(self, input_ids, labels):
        hidden = self.model.transformer(input_ids=input_ids).last_hidden_state[:, :-1]
        return F.cross_entropy(self.model.lm_head(hidden).transpose(1, 2), labels[:, 1:])


class ImageLoss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels):
        out = self.model(pixel_values)
        return F.cross_entropy(getattr(out, "logits", out), labels)


def text(batch=BATCH, seq=SEQ):
    raw = np.frombuffer((HERE / "text.txt").read_bytes(), dtype=np.uint8).astype(np.int64)
    at = np.random.default_rng(0).integers(0, len(raw) - seq - 1, size=batch * STEPS)
    return {"input_ids": np.stack([raw[a : a + seq] for a in at]), "labels": np.stack([raw[a + 1 : a + seq + 1] for a in at])}


def masked_text():
    d, rng = text(), np.random.default_rng(1)
    keep = np.arange(SEQ)[None] < rng.integers(SEQ // 2, SEQ + 1, size=(len(d["labels"]), 1))
    return {"input_ids": d["input_ids"], "attention_mask": keep.astype(np.int64), "labels": np.where(keep, d["labels"], -100)}


def images(size, channels=1):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, size=BATCH * STEPS)
    ramp = np.linspace(-1, 1, size)
    stripes = np.sin((labels[:, None, None] + 1) * (ramp[None, :, None] + ramp[None, None, :]))
    noise = rng.normal(scale=0.3, size=(len(labels), channels, size, size))
    return {"pixel_values": (stripes[:, None] + noise).astype(np.float32), "labels": labels}


def export(module, data, folder, opset, batch):
    folder.mkdir(parents=True, exist_ok=True)
    first = {k: torch.from_numpy(v[:batch]) for k, v in data.items()}
    args = tuple(first[k] for k in data)
    order = {"input_ids", "attention_mask", "labels"} & set(data)
    if order == {"input_ids", "attention_mask", "labels"}:
        program = torch.onnx.export(module, (), kwargs=first, dynamo=True, opset_version=opset, verbose=False)
    else:
        program = torch.onnx.export(module, args, dynamo=True, input_names=list(data), opset_version=opset, verbose=False)
    model = program.model_proto
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]  # holds paths of the machine
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, str(folder / "model.onnx"))


def case(name, module, data, opset=18):
    folder = HERE / "models" / name
    export(module, data, folder, opset, BATCH)
    (folder / "data").mkdir(exist_ok=True)
    for k, v in data.items():
        np.save(folder / "data" / f"{k}.npy", v)
    optimizer = torch.optim.AdamW(module.parameters(), **ADAMW)
    losses = []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = module(**{k: torch.from_numpy(v[i * BATCH : (i + 1) * BATCH]) for k, v in data.items()})
        loss.backward()
        if i == 0:
            grads = {k: p.grad.detach().clone().contiguous() for k, p in module.named_parameters() if p.grad is not None}
            save_file(grads, str(folder / "grads.safetensors"))
        optimizer.step()
        losses.append(float(loss))
    record = dict(torch=torch.__version__, opset=opset, batch=BATCH, **{k: v for k, v in ADAMW.items()}, losses=losses)
    (folder / "reference.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{name:10s} loss {losses[0]:.4f} -> {losses[-1]:.4f}")


def labels():
    folder, batch, seq, steps = HERE / "labels", 2, 16, 12
    config = T.GPT2Config(vocab_size=256, n_positions=seq, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
                          bos_token_id=0, eos_token_id=0, use_cache=False)
    raw = np.frombuffer((HERE / "text.txt").read_bytes(), dtype=np.uint8).astype(np.int64)
    windows = np.stack([raw[i * seq : i * seq + seq + 1] for i in range(batch * steps)])
    record = dict(torch=torch.__version__, transformers=T.__version__, **ADAMW)
    for name, kind, wants in [("inside", OwnLoss, "same"), ("sliced", SlicedLoss, "same"), ("hidden", HiddenLoss, "same"),
                              ("outside", TokenLoss, "next")]:
        torch.manual_seed(7)
        module = kind(T.GPT2LMHeadModel(config).train())
        ids, following = np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
        data = {"input_ids": ids, "labels": following if wants == "next" else ids}
        export(module, data, folder, 18, batch)
        (folder / "model.onnx").rename(folder / f"{name}.onnx")
        optimizer, losses = torch.optim.AdamW(module.parameters(), **ADAMW), []
        for i in range(steps):
            optimizer.zero_grad()
            loss = module(**{k: torch.from_numpy(v[i * batch : (i + 1) * batch]) for k, v in data.items()})
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        record[name] = dict(labels=wants, losses=losses)
    (folder / "reference.json").write_text(json.dumps(record, indent=1) + "\n")


def gpt2(width=64, layers=2, heads=2, positions=SEQ):
    config = T.GPT2Config(vocab_size=256, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads, attn_pdrop=0, embd_pdrop=0,
                          resid_pdrop=0, bos_token_id=0, eos_token_id=0, use_cache=False)
    return TokenLoss(T.GPT2LMHeadModel(config).train())


def llama():
    config = T.LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, max_position_embeddings=SEQ, bos_token_id=0, eos_token_id=0, pad_token_id=0, use_cache=False)
    return TokenLoss(T.LlamaForCausalLM(config).train())


def bert():
    config = T.BertConfig(vocab_size=256, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
                          hidden_dropout_prob=0, attention_probs_dropout_prob=0, max_position_embeddings=SEQ)
    return TokenLoss(T.BertForMaskedLM(config).train())


def vit():
    config = T.ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, image_size=16, num_channels=1,
                         patch_size=4, num_labels=10, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return ImageLoss(T.ViTForImageClassification(config).train())


def cnn():
    n = torch.nn
    return ImageLoss(n.Sequential(
        n.Conv2d(1, 8, 3, padding=1), n.ReLU(), n.MaxPool2d(2), n.Conv2d(8, 16, 3, padding=1, stride=2), n.GroupNorm(4, 16), n.ReLU(),
        n.Conv2d(16, 16, 3, padding=1, groups=16), n.SiLU(), n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(16, 10)))


if __name__ == "__main__":
    cases = [("gpt2", gpt2, text, 18), ("llama18", llama, text, 18), ("llama23", llama, text, 23), ("bert", bert, masked_text, 18),
             ("vit", vit, lambda: images(16), 18), ("cnn", cnn, lambda: images(12), 18)]
    for seed, (name, model, data, opset) in enumerate(cases):
        torch.manual_seed(seed)
        case(name, model(), data(), opset)
    torch.manual_seed(99)
    export(gpt2(width=128, layers=4, heads=4, positions=128), text(8, 128), HERE / "models" / "demo", 18, 8)
    labels()
