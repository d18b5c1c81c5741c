"""Does what `kvsculpt convert` writes mean the same to the engines that read it? Asks the engines themselves.

Not a part of the tests that have to pass: it needs other people's packages.

    pip install numpy safetensors torch transformers "mlx[cpu]" mlx-lm gguf accelerate
    cargo build
    python tests/readers.py target/debug/kvsculpt
    python tests/readers.py target/debug/kvsculpt --llama-libraries DIR --gguf MODEL     # also llama.cpp

A tiny random Llama (no download) reads a text in transformers and in mlx-lm. Each cache is saved, converted, loaded in the other engine,
and the text goes on; logits must agree with those of an engine that kept its own cache. Then pairs are taken out of the cache, as a
compression would: the reference is attention over what is left, the query at its true position; the files under test are re-based.

For llama.cpp DIR holds libllama*.so and libggml*.so (the npm package @node-llama-cpp/linux-x64 does, in bins/) and MODEL is a small GGUF
file of a Llama, such as `cargo xtask model` fetches.
"""

import argparse
import ctypes
import glob
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

TEXT = [(7 * i * i + 3 * i) % 97 for i in range(60)]
NEXT = [11, 29, 5, 83]
CONFIG = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
)
failures = []


def check(what, found, expected, tolerance):
    """Logits agree up to `tolerance` times their largest."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    good = found.shape == expected.shape and error <= tolerance
    print(f"{'ok  ' if good else 'FAIL'} {what}: largest difference {error:.2e} (at most {tolerance:.0e})")
    if not good:
        failures.append(what)


def convert(program, source, target, *options):
    """Runs the program; its refusal is this script's end."""
    done = subprocess.run([program, "convert", source, target, *map(str, options)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"convert {options}: {done.stderr}")
    return target


def compress(program, source, target, *options):
    """Runs the program on the CPU; its refusal is this script's end."""
    command = [program, "compress", source, "-o", target, "--engine", "cpu", "--keep", "0.5", "--tail", "4", "--quiet", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"compress {options}: {done.stderr}")
    return target


def kept(layer, lengths):
    """Which pairs a layer keeps: the first two, the last four, and some between."""
    between = np.linspace(2, len(TEXT) - 5, lengths[layer] - 6).round().astype(int)
    return np.unique(np.concatenate([[0, 1], between, np.arange(len(TEXT) - 4, len(TEXT))]))


class Transformers:
    """The tiny model in transformers."""

    def __init__(self):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        self.torch = torch
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(**CONFIG, rope_theta=10000.0)).eval()
        with torch.no_grad():
            # Random initial weights attend to everything alike; sharper ones make a wrong rotation show.
            for name, weight in self.model.named_parameters():
                if "q_proj" in name or "k_proj" in name:
                    weight.mul_(12.0)
                elif "v_proj" in name or "o_proj" in name:
                    weight.mul_(6.0)

    def read(self, cache=None, tokens=TEXT, positions=None):
        """Logits of all tokens, and the cache."""
        torch = self.torch
        positions = None if positions is None else torch.tensor([positions])
        with torch.no_grad():
            out = self.model(torch.tensor([tokens]), past_key_values=cache, position_ids=positions, use_cache=True)
        return out.logits[0].numpy(), out.past_key_values

    def cache(self, arrays):
        """A DynamicCache of (key, value) a layer."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(arrays):
            cache.update(self.torch.as_tensor(key).clone(), self.torch.as_tensor(value).clone(), layer)
        return cache

    def load(self, path):
        """The DynamicCache of a file of ours."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        return self.cache([(tensors[f"layers.{i}.key"], tensors[f"layers.{i}.value"]) for i in range(CONFIG["num_hidden_layers"])])

    def generate(self, cache, tokens):
        """Greedy tokens by transformers' own loop, which counts positions by the stored length."""
        torch = self.torch
        stored = cache.get_seq_length()
        ids = torch.tensor([[0] * stored + tokens])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        return out[0, stored + len(tokens):].tolist()


class Mlx:
    """The same model, with the same weights, in mlx-lm."""

    def __init__(self, other):
        import mlx.core as mx
        from mlx_lm.models.llama import Model, ModelArgs

        self.mx = mx
        arguments = {key: value for key, value in CONFIG.items() if key != "max_position_embeddings"}
        self.model = Model(ModelArgs(model_type="llama", rope_theta=10000.0, **arguments))
        weights = [(name, mx.array(weight.detach().numpy())) for name, weight in other.model.named_parameters()]
        self.model.load_weights(weights, strict=True)

    def read(self, cache, tokens):
        return np.array(self.model(self.mx.array([tokens]), cache=cache).astype(self.mx.float32))[0]

    def save(self, path):
        """Reads the text and saves the cache as `mlx_lm.cache_prompt` does."""
        from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache

        cache = make_prompt_cache(self.model)
        self.read(cache, TEXT)
        save_prompt_cache(path, cache, {"model": "tiny", "tokenizer_config": "{}"})
        return cache

    def load(self, path):
        from mlx_lm.models.cache import load_prompt_cache

        return load_prompt_cache(path)

    def generate(self, cache, tokens):
        from mlx_lm.generate import generate_step

        steps = generate_step(self.mx.array(tokens), self.model, max_tokens=8, prompt_cache=cache)
        return [int(token) for token, _ in steps]


def layout():
    """The layout of prompt caches that the installed mlx-lm reads."""
    import mlx_lm

    return "mlx" if tuple(map(int, mlx_lm.__version__.split(".")[:2])) >= (0, 32) else "mlx-0.31"


def whole_caches(program, folder, hugging, mlx):
    """Nothing compressed: every engine goes on as if the cache were its own."""
    from safetensors.torch import save_file

    _, cache = hugging.read()
    arrays = [(layer.keys.numpy().copy(), layer.values.numpy().copy()) for layer in cache.layers]
    saved = os.path.join(folder, "hugging.safetensors")
    names = {f"{kind}_cache.{i}": hugging.torch.tensor(pair[j]) for i, pair in enumerate(arrays) for j, kind in enumerate(["key", "value"])}
    save_file(names, saved)
    expected, _ = hugging.read(hugging.cache(arrays), NEXT)
    own = convert(program, saved, os.path.join(folder, "own"), "--to", "compressed")
    again = convert(program, own, os.path.join(folder, "again"), "--to", "hugging-face")
    check("transformers, through our format", hugging.read(hugging.load(again), NEXT)[0], expected, 0)
    prompt = convert(program, saved, os.path.join(folder, "prompt.safetensors"), "--to", layout(), "--model", "tiny")
    check("transformers to mlx-lm", mlx.read(mlx.load(prompt), NEXT), expected, 2e-5)
    from_mlx = os.path.join(folder, "mlx.safetensors")
    expected = mlx.read(mlx.save(from_mlx), NEXT)
    own = convert(program, from_mlx, os.path.join(folder, "own"), "--to", "compressed")
    prompt = convert(program, own, os.path.join(folder, "prompt.safetensors"), "--to", layout())
    check("mlx-lm, through our format", mlx.read(mlx.load(prompt), NEXT), expected, 0)
    back = convert(program, from_mlx, os.path.join(folder, "back"), "--to", "hugging-face")
    check("mlx-lm to transformers", hugging.read(hugging.load(back), NEXT)[0], expected, 2e-5)
    return arrays


def short_caches(program, folder, hugging, mlx, arrays, lengths):
    """Pairs taken out: the files are re-based, the reference asks at the true positions."""
    from safetensors.numpy import save_file

    layers = [kept(layer, lengths) for layer in range(len(arrays))]
    short = [(key[:, :, rows], value[:, :, rows]) for (key, value), rows in zip(arrays, layers)]
    tensors = {}
    for i, (key, value) in enumerate(short):
        tensors[f"layers.{i}.key"], tensors[f"layers.{i}.value"] = (np.ascontiguousarray(x[0].reshape(-1, 16)) for x in (key, value))
        tensors[f"layers.{i}.lengths"] = np.full(2, key.shape[2], np.int32)
    texts = dict(format="kv-compressed", version="1", tokens=str(len(TEXT)), next_position=str(len(TEXT)), rope_theta="10000.0",
                 rope_dim="16", rope_pairing="half", softmax_scale="0.25", model="tiny", architecture="llama")
    saved = os.path.join(folder, "short.safetensors")
    save_file(tensors, saved, texts)
    name = "as long in all layers" if len(set(map(len, layers))) == 1 else "by layer"
    # One token at a time, so that no mask has a part in it.
    def one_by_one(read):
        return np.concatenate([read(token, number) for number, token in enumerate(NEXT)])
    cache = hugging.cache(short)
    expected = one_by_one(lambda token, number: hugging.read(cache, [token], [len(TEXT) + number])[0])
    absolute = convert(program, saved, os.path.join(folder, "absolute"), "--to", "hugging-face", "--frame", "absolute")
    there = hugging.load(absolute)
    found = one_by_one(lambda token, number: hugging.read(there, [token], [len(TEXT) + number])[0])
    check(f"short {name}: transformers, absolute", found, expected, 0)
    prompt = convert(program, saved, os.path.join(folder, "prompt.safetensors"), "--to", layout())
    there = mlx.load(prompt)
    found = one_by_one(lambda token, number: mlx.read(there, [token]))
    check(f"short {name}: mlx-lm, re-based", found, expected, 2e-5)
    check(f"short {name}: mlx-lm, re-based, all at once", mlx.read(mlx.load(prompt), NEXT), expected, 2e-5)
    print("     mlx-lm generates", mlx.generate(mlx.load(prompt), NEXT))
    if name != "by layer":
        rebased = convert(program, saved, os.path.join(folder, "rebased"), "--to", "hugging-face")
        there = hugging.load(rebased)
        found = one_by_one(lambda token, number: hugging.read(there, [token])[0])
        check(f"short {name}: transformers, re-based", found, expected, 2e-5)
        print("     transformers generates", hugging.generate(hugging.load(rebased), NEXT))


def compressed_caches(program, folder, hugging, mlx):
    """A capture of the whole tiny model, compressed by the program, in both engines."""
    from safetensors.numpy import save_file

    queries = {}
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, out, i=i: queries.update({i: out[0].numpy().copy()}))
        for i, layer in enumerate(hugging.model.model.layers)
    ]
    _, cache = hugging.read()
    for hook in hooks:
        hook.remove()
    tensors = {}
    for i, layer in enumerate(cache.layers):
        tensors[f"layers.{i}.key"], tensors[f"layers.{i}.value"] = layer.keys[0].numpy().copy(), layer.values[0].numpy().copy()
        tensors[f"layers.{i}.query"] = np.ascontiguousarray(queries[i].reshape(len(TEXT), 4, 16).transpose(1, 0, 2))
    texts = dict(format="kv-capture", version="1", tokens=str(len(TEXT)), next_position=str(len(TEXT)), rope_theta="10000.0",
                 rope_dim="16", rope_pairing="half", softmax_scale="0.25", model="tiny", architecture="llama")
    capture, short = os.path.join(folder, "capture"), os.path.join(folder, "compressed")
    save_file(tensors, capture, texts)
    full = hugging.read(cache, NEXT[:1])[0]
    for budget in ["uniform", "layer"]:
        compress(program, capture, short, "--budget", budget)
        absolute = convert(program, short, os.path.join(folder, "absolute"), "--to", "hugging-face", "--frame", "absolute")
        there = hugging.load(absolute)
        lengths = [layer.keys.shape[2] for layer in there.layers]
        expected = hugging.read(there, NEXT[:1], [len(TEXT)])[0]
        prompt = convert(program, short, os.path.join(folder, "prompt.safetensors"), "--to", layout())
        check(f"compressed, {budget}, {lengths} of {len(TEXT)}: mlx-lm against transformers", mlx.read(mlx.load(prompt), NEXT[:1]), expected, 2e-5)
        print(f"     the full cache's logits are {np.abs(full - expected).max() / np.abs(full).max():.2f} away; mlx-lm generates", mlx.generate(mlx.load(prompt), NEXT))
        direct = compress(program, capture, os.path.join(folder, "direct.safetensors"), "--budget", budget, "--to", layout())
        check("the same, written by `compress --to`", mlx.read(mlx.load(direct), NEXT[:1]), expected, 2e-5)
        if budget == "uniform":
            direct = compress(program, capture, direct, "--budget", budget, "--to", "hugging-face")
            check("the same in transformers", hugging.read(hugging.load(direct), NEXT[:1])[0], expected, 2e-5)
            print("     transformers generates", hugging.generate(hugging.load(direct), NEXT))


class Opaque(ctypes.Structure):
    """Parameters by value, whose fields differ from release to release; longer than any of them."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32)] + [(name, ctypes.c_void_p) for name in ["token", "embd", "pos", "n_seq_id", "seq_id", "logits"]]


class Llama:
    """llama.cpp through its own library."""

    def __init__(self, folder, model):
        load = lambda pattern: ctypes.CDLL(sorted(glob.glob(os.path.join(folder, pattern)))[0], mode=ctypes.RTLD_GLOBAL)
        load("libggml-base*")
        ggml = load("libggml.*")
        ggml.ggml_backend_load_all_from_path(folder.encode())
        self.library = library = load("libllama.*")
        for function, kind in dict(
            llama_model_default_params=Opaque, llama_context_default_params=Opaque, llama_model_load_from_file=ctypes.c_void_p,
            llama_init_from_model=ctypes.c_void_p, llama_batch_get_one=Batch, llama_model_get_vocab=ctypes.c_void_p,
            llama_get_logits_ith=ctypes.POINTER(ctypes.c_float), llama_state_seq_load_file=ctypes.c_size_t,
            llama_state_seq_save_file=ctypes.c_size_t, llama_get_memory=ctypes.c_void_p, llama_memory_seq_rm=ctypes.c_bool,
        ).items():
            getattr(library, function).restype = kind
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        library.llama_log_set(self.quiet, None)
        library.llama_backend_init()
        self.model = ctypes.c_void_p(library.llama_model_load_from_file(model.encode(), library.llama_model_default_params()))
        self.vocab = ctypes.c_void_p(library.llama_model_get_vocab(self.model))
        self.size = library.llama_vocab_n_tokens(self.vocab)

    def context(self):
        return ctypes.c_void_p(self.library.llama_init_from_model(self.model, self.library.llama_context_default_params()))

    def tokens(self, text):
        array = (ctypes.c_int32 * 512)()
        count = self.library.llama_tokenize(self.vocab, text.encode(), len(text.encode()), array, 512, True, False)
        return list(array[:count])

    def read(self, context, tokens):
        """Logits after the last token."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self.library.llama_batch_get_one(array, len(tokens))
        if self.library.llama_decode(context, batch) != 0:
            sys.exit("llama.cpp does not go on from this cache")
        return np.array(self.library.llama_get_logits_ith(context, -1)[: self.size])

    def save(self, context, path, tokens):
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        return self.library.llama_state_seq_save_file(context, path.encode(), 0, array, ctypes.c_size_t(len(tokens)))

    def load(self, path):
        """A new context with the sequence in it, and the file's tokens."""
        context, array, count = self.context(), (ctypes.c_int32 * 512)(), ctypes.c_size_t()
        read = self.library.llama_state_seq_load_file(context, path.encode(), 0, array, ctypes.c_size_t(512), ctypes.byref(count))
        if read == 0:
            sys.exit(f"llama.cpp refuses {path}")
        return context, list(array[: count.value])


def llama_caches(program, folder, libraries, gguf):
    """llama.cpp's own state, through our format and shortened."""
    from safetensors.numpy import load_file, save_file

    llama = Llama(libraries, gguf)
    text = llama.tokens("The lighthouse keeper wrote the same line every evening: the sea is calm, the lamp is lit, and nobody has come. One day")
    follow = llama.tokens(" a boat")[-2:]
    state = os.path.join(folder, "state.bin")
    context = llama.context()
    llama.read(context, text)
    llama.save(context, state, text)
    expected = llama.read(context, follow)
    heads = ["--kv-heads", "3", "--architecture", "llama"]
    version = "llama-v2" if open(state, "rb").read(8)[4] == 2 else "llama"
    print(f"     llama.cpp wrote a state of version {open(state, 'rb').read(8)[4]}, {len(text)} tokens")
    own = convert(program, state, os.path.join(folder, "own"), "--to", "compressed", *heads, "--rope-theta", "100000", "--rope-dim", "64")
    back = convert(program, own, os.path.join(folder, "back.bin"), "--to", version)
    check("llama.cpp's state through our format, the same bytes", [open(state, "rb").read() == open(back, "rb").read()], [True], 0)
    there, tokens = llama.load(back)
    check("its tokens", tokens, text, 0)
    check("llama.cpp goes on from it", llama.read(there, follow), expected, 0)
    # Every third pair between the sinks and the tail taken out: llama.cpp does so itself with seq_rm.
    gone = [position for position in range(4, len(text) - 8) if position % 3 == 0]
    context, _ = llama.load(state)
    memory = ctypes.c_void_p(llama.library.llama_get_memory(context))
    for position in gone:
        llama.library.llama_memory_seq_rm(memory, 0, position, position + 1)
    # Saved and loaded once, so that the same cells hold what is left.
    left = os.path.join(folder, "left.bin")
    llama.save(context, left, text)
    expected = llama.read(llama.load(left)[0], follow)
    rows = [position for position in range(len(text)) if position not in gone]
    tensors, short = load_file(own), {}
    for name, tensor in tensors.items():
        if name.endswith("lengths"):
            short[name] = np.full_like(tensor, len(rows))
        else:
            short[name] = np.ascontiguousarray(tensor.reshape(3, len(text), -1)[:, rows].reshape(3 * len(rows), -1))
    with open(own, "rb") as file:
        texts = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    saved = os.path.join(folder, "short.safetensors")
    save_file(short, saved, texts)
    state = convert(program, saved, os.path.join(folder, "short.bin"), "--to", version)
    there, _ = llama.load(state)
    check(f"{len(rows)} of {len(text)} pairs, absolute", llama.read(there, follow), expected, 0)
    compressed_state(program, folder, llama, text, follow, version)
    from_transformers(program, folder, llama, gguf, text, follow, version)


def compressed_state(program, folder, llama, text, follow, version):
    """llama.cpp's own state, compressed to one in a single step; and in two, by our format."""
    state, short = os.path.join(folder, "whole.bin"), os.path.join(folder, "compressed")
    context = llama.context()
    llama.read(context, text)
    llama.save(context, state, text)
    full = llama.read(context, follow)
    options = ["--kv-heads", 3, "--architecture", "llama", "--rope-theta", 100000, "--rope-dim", 64, "--queries", "keys", "--dtype", "f16", "--budget", "uniform"]
    direct, _ = llama.load(compress(program, state, os.path.join(folder, "direct.bin"), "--to", version, *options))
    compress(program, state, short, *options)
    stepwise, tokens = llama.load(convert(program, short, os.path.join(folder, "stepwise.bin"), "--to", version))
    expected = llama.read(stepwise, follow)
    check("compressed, a state by `compress --to`", llama.read(direct, follow), expected, 0)
    check("its tokens", tokens, text, 0)
    print(f"     the full cache's logits are {np.abs(full - expected).max() / np.abs(full).max():.2f} away")


def from_transformers(program, folder, llama, gguf, text, follow, version):
    """The same weights in transformers, whose keys pair channels the other way."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(gguf), gguf_file=os.path.basename(gguf), dtype=torch.float32).eval()
    with torch.no_grad():
        cache = model(torch.tensor([text]), use_cache=True).past_key_values
    names = {f"layers.{i}.{kind}": x.contiguous() for i, layer in enumerate(cache.layers) for kind, x in [("keys", layer.keys), ("values", layer.values)]}
    saved = os.path.join(folder, "gguf.safetensors")
    save_file(names, saved)
    known = ["--architecture", "llama", "--rope-theta", "100000", "--rope-dim", "64"]
    state = convert(program, saved, os.path.join(folder, "gguf.bin"), "--to", version, *known)
    context = llama.context()
    llama.read(context, text)
    expected = llama.read(context, follow)
    there, _ = llama.load(state)
    check("transformers' cache of the same weights in llama.cpp", llama.read(there, follow), expected, 5e-2)
    wrong = convert(program, saved, os.path.join(folder, "wrong.bin"), "--to", version, *known, "--pairing", "half")
    there, _ = llama.load(wrong)
    off = np.abs(llama.read(there, follow) - expected).max() / np.abs(expected).max()
    print(f"     with the channels left as they were it would differ by {off:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--llama-libraries", metavar="DIR")
    parser.add_argument("--gguf", metavar="MODEL")
    parser.add_argument("--only-llama", action="store_true")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.program)
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.only_llama:
            hugging = Transformers()
            mlx = Mlx(hugging)
            arrays = whole_caches(program, folder, hugging, mlx)
            short_caches(program, folder, hugging, mlx, arrays, [20, 20, 20])
            short_caches(program, folder, hugging, mlx, arrays, [16, 24, 20])
            compressed_caches(program, folder, hugging, mlx)
        if arguments.llama_libraries:
            llama_caches(program, folder, arguments.llama_libraries, arguments.gguf)
    sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
