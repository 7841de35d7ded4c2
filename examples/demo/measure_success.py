"""Measures how often the demo's model answers the questions of a run file, alone and under each teacher's context.

    python examples/demo/measure_success.py MODEL_FOLDER --contexts none,answer --samples 16

Prints a Markdown table: the share of sampled outputs that the run's verifier accepts, by question and context.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch
from opdscope import RunFile
from opdscope_scorer.contexts import CONTEXTS
from opdscope_scorer.policy import sampling_log_probs
from opdscope_scorer.prompts import PromptTemplate
from opdscope_scorer.questions import Question
from opdscope_scorer.verifiers import VERIFIERS
from opdscope_serving.models import LoadedModel, load_model
from opdscope_serving.text import output_text
from transformers import DynamicCache


def prefix_cache(loaded: LoadedModel, token_ids: Sequence[int]) -> DynamicCache:
    """Return the keys and values of a prefix, one row."""
    cache = DynamicCache()
    loaded.model(torch.tensor([token_ids]), past_key_values=cache, logits_to_keep=1)
    return cache


def sample(
    loaded: LoadedModel, run: RunFile, prompt: Sequence[int], shared: DynamicCache, count: int
) -> list[list[int]]:
    """Sample outputs for a prompt that starts with the tokens in `shared`, as the run says."""
    cache = copy.deepcopy(shared)
    tokens = torch.tensor([prompt[cache.get_seq_length() :]])
    rows: list[list[int]] = [[] for _ in range(count)]
    alive = list(range(count))
    for _ in range(run.sampling.max_new_tokens):
        logits = loaded.model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        if len(logits) < len(alive):  # the prompt was one row
            cache.batch_repeat_interleave(count)
            logits = logits.expand(count, -1)
        log_probs = sampling_log_probs(logits, temperature=run.sampling.temperature, top_p=run.sampling.top_p)
        tokens = torch.multinomial(log_probs.exp(), 1)
        for row, token_id in zip(alive, tokens[:, 0].tolist(), strict=True):
            rows[row].append(token_id)
        going = [place for place, row in enumerate(alive) if not ended(loaded, run, rows[row])]
        if not going:
            break
        if len(going) < len(alive):
            alive, tokens = [alive[place] for place in going], tokens[going]
            cache.batch_select_indices(torch.tensor(going))
    return rows


def ended(loaded: LoadedModel, run: RunFile, output: Sequence[int]) -> bool:
    """Return whether an output is complete."""
    return output[-1] in loaded.eos_token_ids or output_text(loaded.tokenizer, output, run.sampling.stop).stopped


def success_rates(loaded: LoadedModel, run: RunFile, context: str, count: int) -> tuple[dict[str, float], float]:
    """Return the success rate of each question under a context, and the mean length of the outputs."""
    template, verify = PromptTemplate(run.prompt.template), VERIFIERS.get(run.verifier).check
    build = CONTEXTS.get(context).build
    questions = [Question(q.id, q.question, q.answer, q.solution, q.hint) for q in run.questions]
    prompts = [loaded.tokenizer(template.render(q.question, build(q))).input_ids for q in questions]
    # The few-shot examples are common to all prompts. At least one token must be left to predict from.
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*(prompt[:-1] for prompt in prompts), strict=False))
    shared = prefix_cache(loaded, [column[0] for column in columns])
    rates: dict[str, float] = {}
    lengths: list[int] = []
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), start=1):
        outputs = sample(loaded, run, prompt, shared, count)
        texts = [output_text(loaded.tokenizer, output, run.sampling.stop).text for output in outputs]
        rates[question.id] = sum(verify(text, question.answer) for text in texts) / count
        lengths += [len(output) for output in outputs]
        print(f"{context}: {number} of {len(prompts)} questions", file=sys.stderr)
    return rates, sum(lengths) / len(lengths)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with config.json and safetensors")
    parser.add_argument("--run", type=Path, default=Path(__file__).with_name("run.yaml"))
    parser.add_argument("--contexts", default="none,answer,solution,hint", help="`none` is the student itself")
    parser.add_argument("--questions", help="ids of the questions, by default all of the file")
    parser.add_argument("--samples", type=int, default=16, help="outputs per question and context")
    parser.add_argument("--greedy", action="store_true", help="one output per question, of the likeliest tokens")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    run = RunFile.load(arguments.run)
    if arguments.questions:
        ids = arguments.questions.split(",")
        run = run.model_copy(update={"questions": tuple(q for q in run.questions if q.id in ids)})
    if arguments.greedy:  # nothing but the likeliest token fits into so small a nucleus
        run = run.model_copy(update={"sampling": run.sampling.model_copy(update={"top_p": 1e-9})})
        arguments.samples = 1
    torch.manual_seed(run.seed)
    loaded = load_model(arguments.model)
    contexts = arguments.contexts.split(",")
    with torch.inference_mode():
        measured = {name: success_rates(loaded, run, name, arguments.samples) for name in contexts}

    print("| question |", " | ".join(contexts), "|")
    print("|---|", "---|" * len(contexts), sep="")
    for question in run.questions:
        print(f"| {question.id} |", " | ".join(f"{measured[name][0][question.id]:.2f}" for name in contexts), "|")
    print("| mean |", " | ".join(f"{sum(rates.values()) / len(rates):.2f}" for rates, _ in measured.values()), "|")
    print("| tokens per output |", " | ".join(f"{length:.1f}" for _, length in measured.values()), "|")


if __name__ == "__main__":
    main()
