"""What it costs to evaluate the whole catalogue at once, beside one objective after the other.

    python benchmarks/objectives.py [--nodes 512] [--vocabulary 150000]

Prints one JSON object: seconds of both ways, their ratio (the target is below 0.6), and the peak memory of the joint
evaluation beyond its inputs. Both ways walk the nodes in the same chunks and reduce every direction to its norm.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from opdscope_scorer.objectives import PRESETS, BoundObjective, ObjectiveInputs, evaluate, known, parse_objectives

FORMS = ("unnormalised", "renormalised", "tail_bucket", "stop_gradient")
SOURCES = ("student", "teacher", "union", "intersection")


def catalogue() -> list[BoundObjective]:
    """Every objective with its defaults, every top-K variant, every preset; equal ones once."""
    texts = [*known(), *PRESETS, "reverse_kl(floor=-10)", "forward_kl(floor=-10)", "0.5*reverse_kl + 0.5*forward_kl"]
    for source in SOURCES:
        texts += [f"top_k_{kl}_kl(form={form}, source={source})" for kl in ("reverse", "forward") for form in FORMS]
        texts += [f"top_k_jsd(form={form}, source={source})" for form in FORMS[1:3]]
    return parse_objectives(texts)


def inputs_of(nodes: int, vocabulary: int) -> ObjectiveInputs:
    """Logits in bfloat16 as models give them, policies in float32, values that are the same at every node."""
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(nodes, vocabulary, generator=generator)
    zq = z + torch.randn(nodes, vocabulary, generator=generator)
    value, inverse_length, teacher_return = torch.rand(3, 1, vocabulary, generator=generator)
    inputs = ObjectiveInputs(
        log_p_NV=z.log_softmax(-1),
        log_q_NV=zq.log_softmax(-1),
        student_logits_NV=z.bfloat16(),
        teacher_logits_NV=zq.bfloat16(),
        value_NV=value.expand(nodes, -1),
        success_per_token_NV=(value * inverse_length).expand(nodes, -1),
        failure_per_token_NV=((1 - value) * inverse_length).expand(nodes, -1),
        prompt_success_N=torch.full((nodes,), 0.5),
        return_NV=teacher_return.expand(nodes, -1),
    )
    del z, zq
    return inputs


def seconds(objectives: Iterable[BoundObjective], inputs: ObjectiveInputs) -> float:
    """Time of one evaluation whose directions are reduced at once."""
    start = time.perf_counter()
    for one in evaluate(objectives, inputs):
        one.direction_NV.square_().sum()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Joint first, so that the peak is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    objectives, inputs = catalogue(), inputs_of(arguments.nodes, arguments.vocabulary)
    # The peak of making the inputs is not that of evaluating them.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes()
    together = seconds(objectives, inputs)
    peak = peak_bytes() - before
    each = {one.canonical: seconds([one], inputs) for one in objectives}
    result = {
        "nodes": arguments.nodes,
        "vocabulary": arguments.vocabulary,
        "objectives": len(objectives),
        "seconds_together": round(together, 2),
        "seconds_separately": round(sum(each.values()), 2),
        "ratio": round(together / sum(each.values()), 3),
        "peak_bytes_beyond_inputs": peak,
        "slowest": sorted(each, key=lambda name: -each[name])[:3],
    }
    print(json.dumps(result, indent=2))


def peak_bytes() -> int:
    """Largest resident memory since the counter was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()
