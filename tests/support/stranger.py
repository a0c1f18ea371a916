"""A program that cannot import hf_heads: loads converted checkpoints as transformers alone does, and says what it saw.

Run as `python -I stranger.py CASE...`; a case is a folder with a checkpoint and, in `expected.safetensors`, its inputs
and what they give. For every case it prints a line of JSON.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

FORBIDDEN = ("hf_heads", "tests", "scripts")


class Forbidden:
    """Refuses imports of what a stranger does not have."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Forbidden)
os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=tempfile.mkdtemp(), TRANSFORMERS_VERBOSITY="error")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

transformers.utils.logging.disable_progress_bar()


def load(auto, folder, **options):
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options)


def outputs(model, inputs, name):
    with torch.no_grad():
        return model.eval()(**inputs)[name]


def same_state(one, other):
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


def close(one, other):
    """The same but for rounding, since what was loaded lies in memory otherwise than what was trained."""
    return bool((one - other).abs().max() < 1e-5)


def trained(model, inputs, name):
    """Whether one step of training moves every parameter that has a gradient, and there are some."""
    before = copy.deepcopy(model.state_dict())
    for key, one in model.named_parameters():
        one.requires_grad_("embed_positions" not in key)  # Marian's are computed, and never saved
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(**inputs)[name].float().square().mean().backward()
    moving = [key for key, one in model.named_parameters() if one.grad is not None and one.grad.abs().max() > 1e-4]
    optimizer.step()
    model.eval()
    return len(moving) > 5 and all(not torch.equal(model.state_dict()[key], before[key]) for key in moving)


def saved(auto, model, inputs, name, folder):
    """Whether a model that was saved and loaded gives the same, and the files but the weights are the same."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        again = load(auto, place, attn_implementation="eager")
        code = next(Path(place).glob("*.py"))
        entries = [json.loads((Path(one) / "config.json").read_text()) for one in (place, folder)]
        kept = all(entries[0][key] == entries[1][key] for key in ("auto_map", "heads", "model_type", "fusion_config"))
        kept = kept and code.read_bytes() == (Path(folder) / code.name).read_bytes()
        cards = [(Path(one) / "README.md").read_text() for one in (place, folder)]
        blocks = [card.partition("## Blocks")[2] for card in cards]
        kept = kept and "may have been trained since" in cards[0] and blocks[0] == blocks[1] != ""
        return kept and same_state(model, again) and close(outputs(model, inputs, name), outputs(again, inputs, name))


def refused(host, folder):
    """Whether the host's own class refuses the folder."""
    try:
        getattr(transformers, host).from_pretrained(folder)
    except ValueError as error:
        return "re-parametrized" in str(error)
    return False


def every_class(folder):
    """What is wrong with the classes of `auto_map`, loaded one by one and made from the config."""
    wrong = []
    for auto, name in json.loads((Path(folder) / "config.json").read_text())["auto_map"].items():
        if auto == "AutoConfig":
            continue
        model = load(auto, folder)
        if type(model).__name__ != name.partition(".")[2]:
            wrong.append(f"{auto} makes a {type(model).__name__}")
        fresh = getattr(transformers, auto).from_config(model.config, trust_remote_code=True)
        if not all(torch.isfinite(one).all() and one.abs().max() < 1e3 for one in fresh.parameters()):
            wrong.append(f"{auto}.from_config leaves weights uninitialised")
    return wrong


def look(folder):
    case = json.loads((Path(folder) / "case.json").read_text())
    tensors = load_file(Path(folder) / "expected.safetensors")
    # Copies lie in memory as what is made does; sums of what a file's pages hold may be rounded otherwise.
    inputs = {key[6:]: value.clone() for key, value in tensors.items() if key.startswith("input.")}
    found, given = {}, (inputs, case["output"])
    for implementation in case["implementations"]:
        model = load(case["auto"], folder, attn_implementation=implementation)
        # Fused kernels round by how tensors lie in memory where heads share keys.
        same = torch.equal if implementation == "eager" or case["every"] is not None else close
        found[implementation] = bool(same(outputs(model, *given), tensors[implementation]))
    if "generated" in tensors:
        generated = model.generate(**{key: inputs[key] for key in case["prompt"]}, **case["generation"])
        found["generate"] = torch.equal(generated, tensors["generated"])
    model = load(case["auto"], folder, attn_implementation="eager")
    # Before it runs: hooks of transformers that record outputs are not pickled, nor are parametrized modules of torch.
    if not any(map(torch.nn.utils.parametrize.is_parametrized, model.modules())):
        found["pickled"] = same_state(model, pickle.loads(pickle.dumps(model)))
    found["saved"] = saved(case["auto"], model, *given, folder)
    found["trained"] = trained(model, *given)
    found["saved after training"] = saved(case["auto"], model, *given, folder)
    found["native refused"] = refused(case["native"], folder)
    if case["every"]:
        found["wrong"] = every_class(folder)
    found["free"] = not any(name.partition(".")[0] in FORBIDDEN for name in sys.modules)
    return found


def main():
    for folder in sys.argv[1:]:
        quiet = io.StringIO()
        with contextlib.redirect_stderr(quiet):
            found = look(folder)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
