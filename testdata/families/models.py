"""The models of check.py: small ones of many families, each with the loss that it is trained on."""

import torch
import torch.nn.functional as F
import transformers as T
from torch import nn

from check import DYNAMIC, OPSETS, USUAL


class TokenLoss(nn.Module):
    """Mean cross-entropy of a language model, labels of -100 left out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels):
        # The older exporter has no operator for what transformers asks of a batch without a mask.
        mask = torch.ones_like(input_ids) if torch.jit.is_tracing() else None
        logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.view(-1))


class MaskedLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100)


class ImageLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels):
        out = self.model(pixel_values)
        return F.cross_entropy(getattr(out, "logits", out), labels)


class Logits(nn.Module):
    """A forward graph without a loss, as most published files are."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


class MixerBlock(nn.Module):
    def __init__(self, tokens, width, act):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token = nn.Sequential(nn.Linear(tokens, 32), act(), nn.Linear(32, tokens))
        self.channel = nn.Sequential(nn.Linear(width, 96), act(), nn.Linear(96, width))

    def forward(self, x):
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 48, 8, 8), nn.LayerNorm(48), nn.Linear(48, 10)
        self.blocks = nn.Sequential(*[MixerBlock(16, 48, act) for _ in range(2)])

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


class Activations(nn.Module):
    """Every activation and kind of normalisation, convolutions with dilation, groups and strides, both poolings."""

    def __init__(self):
        super().__init__()
        self.stem, self.instance = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.InstanceNorm2d(8, affine=True)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False)
        self.prelu, self.group, self.point = nn.PReLU(8), nn.GroupNorm(1, 8), nn.Conv2d(8, 16, 1, stride=2)
        self.groups, self.last, self.scale = nn.GroupNorm(8, 16, affine=False), nn.Conv2d(16, 8, 3, padding=1), nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 10)
        self.acts = [nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.LeakyReLU(), nn.ReLU6(),
                     nn.Softsign(), nn.LogSigmoid(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), Erf()]

    def forward(self, x):
        x = self.group(self.prelu(self.depthwise(self.instance(self.stem(x)))))
        for act in self.acts:
            x = x + 0.1 * act(x)
        x = F.avg_pool2d(F.max_pool2d(x, 3, 2, 1), 3, 2, 1, count_include_pad=False)
        x = self.last(self.groups(self.point(x))) * self.scale
        return self.head(x.mean((2, 3)))


class Odd(nn.Module):
    """Parameters used in ways that exporters fold: expanded, transposed, shared, scalar, one and zero."""

    def __init__(self):
        super().__init__()
        self.position, self.token = nn.Parameter(torch.randn(1, 16, 24) * 0.02), nn.Parameter(torch.zeros(1, 1, 24))
        self.first, self.head = nn.Linear(48, 24), nn.Linear(24, 10)
        self.scale, self.one, self.zero = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.weight, self.bias = nn.Parameter(torch.randn(24, 24) * 0.1), nn.Parameter(torch.zeros(24))
        self.norm1, self.norm2, self.gamma = nn.LayerNorm(24), nn.LayerNorm(24), nn.Parameter(torch.full((24,), 0.1))

    def forward(self, x):
        x = self.first(x.flatten(1).reshape(x.shape[0], 16, -1)[:, :, :48]) + self.position
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm1(x) + self.norm2(x) * self.gamma
        x = x @ self.weight.t() + self.bias
        x = torch.einsum("bsd,ed->bse", x, self.weight) * self.scale
        return self.head((x * self.one + self.zero)[:, 0])


class Groups(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(4, channels)


TOKENS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
WIDTH = dict(vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LLAMA = dict(**WIDTH, **TOKENS, intermediate_size=176)
SHARED = dict(**LLAMA, num_key_value_heads=2)
BERT = dict(**WIDTH, intermediate_size=128, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
GPT2 = dict(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **TOKENS)
VISION = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, num_channels=3, patch_size=8,
              num_labels=10, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
STAGES = dict(num_channels=3, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], num_labels=10, image_size=64, drop_path_rate=0)
EAGER = dict(attn_implementation="eager")


def language(kind, config, variants=USUAL, **options):
    """A decoder that tells the next byte."""
    make = lambda: TokenLoss(getattr(T, kind + "ForCausalLM" if "LMHead" not in kind else kind)(getattr(T, config)(**options)).train())
    return make, "text", variants


def encoder(kind, variants=USUAL, data="masked", **options):
    """An encoder that tells hidden bytes."""
    return lambda: MaskedLoss(getattr(T, kind + "ForMaskedLM")(getattr(T, kind + "Config")(**options)).train()), data, variants


def vision(kind, variants=USUAL, size="image", **options):
    make = lambda: ImageLoss(getattr(T, kind + "ForImageClassification")(getattr(T, kind + "Config")(**options)).train())
    return make, size, variants


def plain(make, variants=USUAL):
    return lambda: ImageLoss(make().train()), "image", variants


def torchvision(name, variants=USUAL, groups=False, **options):
    """A network of torchvision: with group normalisation, or with batch normalisation as in inference."""

    def make():
        import torchvision as tv

        network = getattr(tv.models, name)(num_classes=10, **({"norm_layer": Groups} if groups else {}), **options)
        return ImageLoss(network.train() if groups else network.eval()).train(groups)

    return make, "image", variants


GEMMA2 = dict(SHARED, head_dim=16, sliding_window=8, query_pre_attn_scalar=16)

MODELS = {
    "gpt2": language("GPT2LMHeadModel", "GPT2Config", OPSETS + DYNAMIC[2:5] + DYNAMIC[7:], **GPT2),
    "gpt2-eager": language("GPT2LMHeadModel", "GPT2Config", **GPT2, **EAGER),
    "llama": language("Llama", "LlamaConfig", DYNAMIC, **SHARED),
    "llama-eager": language("Llama", "LlamaConfig", **SHARED, **EAGER),
    "gpt_neox": language("GPTNeoX", "GPTNeoXConfig", DYNAMIC, **dict(LLAMA, intermediate_size=128), rotary_pct=0.25, hidden_dropout=0,
                         attention_dropout=0),
    "gpt_neox-serial": language("GPTNeoX", "GPTNeoXConfig", **dict(LLAMA, intermediate_size=128), rotary_pct=0.25,
                                use_parallel_residual=False, hidden_dropout=0, attention_dropout=0),
    "qwen2": language("Qwen2", "Qwen2Config", DYNAMIC, **SHARED, tie_word_embeddings=True),
    "qwen3": language("Qwen3", "Qwen3Config", DYNAMIC, **SHARED, head_dim=16),
    "mistral": language("Mistral", "MistralConfig", DYNAMIC, **SHARED, sliding_window=8),
    "phi": language("Phi", "PhiConfig", **dict(LLAMA, intermediate_size=128), partial_rotary_factor=0.5),
    "phi3": language("Phi3", "Phi3Config", **SHARED),
    "gemma": language("Gemma", "GemmaConfig", **dict(SHARED, num_key_value_heads=1), head_dim=16),
    "gemma2": language("Gemma2", "Gemma2Config", **GEMMA2),
    "gemma2-eager": language("Gemma2", "Gemma2Config", DYNAMIC, **GEMMA2, **EAGER),
    "gemma3": language("Gemma3", "Gemma3TextConfig", **GEMMA2),
    "opt": language("OPT", "OPTConfig", DYNAMIC, **WIDTH, **dict(TOKENS, pad_token_id=1), ffn_dim=128, word_embed_proj_dim=64, dropout=0,
                    attention_dropout=0),
    "bloom": language("Bloom", "BloomConfig", vocab_size=256, hidden_size=64, n_layer=2, n_head=4, **TOKENS),
    "gptj": language("GPTJ", "GPTJConfig", **GPT2, rotary_dim=8),
    "gpt_neo": language("GPTNeo", "GPTNeoConfig", vocab_size=256, max_position_embeddings=64, hidden_size=64, num_layers=2, num_heads=4,
                        attention_types=[[["global", "local"], 1]], window_size=8, resid_dropout=0, embed_dropout=0, attention_dropout=0, **TOKENS),
    "falcon": language("Falcon", "FalconConfig", **WIDTH, **TOKENS, new_decoder_architecture=True, num_kv_heads=2,
                       alibi=False, hidden_dropout=0, attention_dropout=0),
    # The older exporter writes a file of it that ONNX Runtime refuses.
    "cohere": language("Cohere", "CohereConfig", USUAL[:2], **LLAMA),
    "stablelm": language("StableLm", "StableLmConfig", **SHARED, partial_rotary_factor=0.25, hidden_dropout=0, attention_dropout=0),
    "olmo2": language("Olmo2", "Olmo2Config", **LLAMA),
    "granite": language("Granite", "GraniteConfig", **SHARED),
    "nemotron": language("Nemotron", "NemotronConfig", **SHARED),
    "starcoder2": language("Starcoder2", "Starcoder2Config", **dict(SHARED, intermediate_size=128), sliding_window=8, residual_dropout=0,
                           embedding_dropout=0),
    "bert": encoder("Bert", DYNAMIC[:4] + DYNAMIC[5:], **BERT),
    # The padding row of its embedding is read, which only the newer exporter's files tell.
    "bert-padding": encoder("Bert", USUAL[:2], "padded", **BERT),
    "roberta": encoder("Roberta", DYNAMIC[:4] + DYNAMIC[5:], **dict(BERT, max_position_embeddings=66), pad_token_id=1),
    "albert": encoder("Albert", **BERT, embedding_size=32),
    "distilbert": encoder("DistilBert", vocab_size=256, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64, dropout=0,
                          attention_dropout=0),
    "electra": encoder("Electra", **BERT, embedding_size=32),
    "mpnet": encoder("MPNet", **BERT),
    "mobilebert": encoder("MobileBert", **dict(WIDTH, hidden_size=32), embedding_size=16, intermediate_size=64, intra_bottleneck_size=16,
                          num_feedforward_networks=2, hidden_dropout_prob=0, attention_probs_dropout_prob=0),
    "modernbert": encoder("ModernBert", **WIDTH, **TOKENS, intermediate_size=96, global_attn_every_n_layers=2, local_attention=16, cls_token_id=0,
                          sep_token_id=0),
    "vit": vision("ViT", DYNAMIC[:4] + DYNAMIC[5:], **VISION),
    "deit": vision("DeiT", **VISION),
    "beit": vision("Beit", **VISION, drop_path_rate=0),
    "dinov2": vision("Dinov2", **VISION, drop_path_rate=0),
    "convnext": vision("ConvNext", DYNAMIC[:4] + DYNAMIC[5:], "large", **STAGES),
    "convnextv2": vision("ConvNextV2", USUAL, "large", **STAGES),
    "segformer": vision("Segformer", num_labels=10, hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2],
                        drop_path_rate=0, classifier_dropout_prob=0, hidden_dropout_prob=0, attention_probs_dropout_prob=0),
    "poolformer": vision("PoolFormer", num_labels=10, hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], drop_path_rate=0),
    "mixer": plain(lambda: Mixer(nn.GELU), OPSETS + ("dynamo-18-dynamic", "torchscript-17-dynamic")),
    "mixer-tanh": plain(lambda: Mixer(nn.Tanh)),
    "mixer-erf": plain(lambda: Mixer(Erf)),
    "mixer-sigmoid": plain(lambda: Mixer(nn.Sigmoid)),
    "mixer-hardswish": plain(lambda: Mixer(nn.Hardswish)),
    "mixer-mish": plain(lambda: Mixer(nn.Mish)),
    "activations": plain(Activations, OPSETS),
    "odd": plain(Odd, OPSETS),
    "mobilenet_v2": torchvision("mobilenet_v2", groups=True, width_mult=0.5, dropout=0),
    "mobilenet_v3": torchvision("mobilenet_v3_small", groups=True, dropout=0),
    "mobilenet_v2-bn": torchvision("mobilenet_v2", width_mult=0.5),
    "resnet18": torchvision("resnet18", ("dynamo-18", "torchscript-17"), groups=True),
    "resnet18-bn": torchvision("resnet18", ("dynamo-18", "dynamo-23-dynamic", "torchscript-13", "torchscript-17")),
}
