"""The harness itself: a cache put back is the cache, oracles score what they must, and KL notices lost rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.native import Native
from pyheadkv.errors import EvaluationError, NativeError
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.engine import Engine, Snapshot
from pyheadkv.evaluate.generate import evaluate_case
from pyheadkv.evaluate.metrics import log_softmax
from pyheadkv.evaluate.prompted import AFTER, Prompted
from pyheadkv.evaluate.runner import CacheReading, Runner
from pyheadkv.evaluate.talk import TalkTrial, open_talk_runner
from pyheadkv.evaluate.tasks import Prose, make_cases
from pyheadkv.evaluate.tasks.talks import make_talks
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import draft_plan
from pyheadkv.policy.text import parse_policy
from pyheadkv.policy.trial import Trial
from tests.tiny import Tiny, write_tiny

TINY = Tiny(n_vocab=256)
PROMPT = np.random.default_rng(5).integers(0, TINY.n_vocab, 400).tolist()
NEXT = [7, 3, 200, 41, 9]
N_OBS = 16
LENGTH = 320


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TINY)


@pytest.fixture
def llama(library: None, tiny: Path) -> Iterator[Any]:
    llama = load(tiny, n_threads=1, n_ctx=512)
    yield llama
    llama.close()


def logits_after(llama: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    found = []
    for token in tokens:
        llama.eval([token])
        found.append(np.ctypeslib.as_array(llama._ctx.get_logits_ith(-1), shape=(llama.n_vocab(),)).copy())
    return np.array(found)


def kept_positions(native: Native) -> list[list[int]]:
    return [
        native.positions(i, ih).tolist() for i, layer in enumerate(native.layers()) for ih in range(layer.n_head_kv)
    ]


def compress_to(engine: Engine, snapshot: Snapshot, positions: Any, n_obs: int) -> None:
    """Put a copy back and keep the given positions of each KV head."""
    engine.restore(snapshot, len(snapshot.tokens) - 1)
    engine.read(snapshot.tokens[-1:])
    engine.native.keep(positions, n_obs)


def test_a_cache_put_back_is_the_cache(llama: Any) -> None:
    engine = Engine(llama)
    engine.read_only(PROMPT)
    kept = engine.snapshot()
    wanted = logits_after(llama, NEXT)
    engine.read_only(PROMPT[::-1])
    engine.restore(kept, len(PROMPT))
    np.testing.assert_array_equal(logits_after(llama, NEXT), wanted)
    engine.restore(kept, 300)
    assert llama.n_tokens == 300 and engine.native.stats().n_pos == 300
    np.testing.assert_array_equal(logits_after(llama, PROMPT[300:302]).argmax(axis=1), _direct(engine, 300, 302))


def _direct(engine: Engine, start: int, end: int) -> npt.NDArray[np.intp]:
    engine.read_only(PROMPT[:start])
    return logits_after(engine.llama, PROMPT[start:end]).argmax(axis=1)


@pytest.mark.parametrize("policy", ["snapkv", "snapkv:n_obs=9,n_sink=2,pool=3", "snapkv:lookahead=3", "ada-snapkv"])
def test_compressed_as_a_session_does(llama: Any, policy: str) -> None:
    with HeadKV(llama, policy=policy, budget="20%", min_prompt=1) as headkv:
        next(iter(headkv.llama.generate(PROMPT, temp=0)))
        headkv._is_generating = True  # what follows is an answer
        wanted = logits_after(llama, NEXT)
        positions = kept_positions(headkv.native)
        shape = headkv.shape
    engine = Engine(llama)
    plan = draft_plan(shape, parse_policy(policy), Budget.parse("20%"), len(PROMPT))
    assert plan is not None
    engine.read_only(PROMPT)
    kept = engine.snapshot()
    for _ in range(2):  # the second time there is a compressed cache to begin with
        engine.compress(kept, plan)
        for token in NEXT[: plan.expected.policy.lookahead]:
            engine.read([token])
        assert kept_positions(engine.native) == positions
        found = logits_after(llama, NEXT[plan.expected.policy.lookahead :])
        np.testing.assert_allclose(found, wanted[plan.expected.policy.lookahead :], atol=2e-2)


def test_a_compressed_cache_is_not_kept_aside(llama: Any) -> None:
    engine = Engine(llama)
    engine.read_only(PROMPT)
    kept = engine.snapshot()
    compress_to(engine, kept, [[0, 1, 2]] * sum(TINY.n_head_kv), N_OBS)
    with pytest.raises(NativeError, match="cannot be saved"):
        engine.snapshot()
    engine.restore(kept, 10)
    assert engine.native.stats().n_pos_hot == 0


GOLD = [7, 3, 200, 41]


class Numbers:
    """Writes tokens as numbers, and never ends."""

    def piece(self, token: int) -> bytes:
        return f"{token} ".encode()

    def is_end(self, token: int) -> bool:
        return False


def prompted_of(metric: str, rest: list[int], gold: list[int]) -> Prompted:
    return Prompted(Case("a", "t", "t", "text", "?", ("none of these",), metric, 6), PROMPT, rest, gold)


@pytest.mark.parametrize("rest", [[], [11, 12, 13]])
@pytest.mark.parametrize("policy", [None, "snapkv"])
def test_log_likelihood_is_that_of_reading_the_answer(llama: Any, policy: str | None, rest: list[int]) -> None:
    engine = Engine(llama)

    def prepare() -> None:
        engine.read_only(PROMPT)
        if policy:
            plan = draft_plan(shape, parse_policy(policy), Budget.parse("20%"), len(PROMPT))
            assert plan is not None
            engine.compress(engine.snapshot(), plan)

    shape = shape_from_metadata(read_gguf_metadata(llama.model_path))
    prepare()
    engine.read(rest)
    logits = [engine.logits().copy(), *logits_after(llama, GOLD[:-1])]
    wanted = np.mean([log_softmax(row)[token] for row, token in zip(logits, GOLD, strict=True)])
    prompted = prompted_of("all_substr", rest, GOLD)
    prepare()
    found = evaluate_case(engine, Numbers(), prompted)  # type: ignore[arg-type]
    assert found.figures["loglik"] == pytest.approx(wanted, abs=1e-5)
    prepare()
    without = evaluate_case(engine, Numbers(), prompted, with_gold=False)  # type: ignore[arg-type]
    assert "loglik" not in without.figures
    assert without.output == found.output  # the gold answer is forgotten again before the model's own


def test_quantised_caches_are_compared_with_the_first(library: None, tiny: Path) -> None:
    """KL: 0 with itself, little with q8_0, more with q4_0, and more again where rows are gone or spoilt."""
    references, kl, n_bytes = None, {}, {}
    for name in ("f16", "q8_0", "q4_0"):
        llama = load(tiny, n_threads=1, n_ctx=512, type_k=name, type_v=name)
        engine = Engine(llama)
        engine.read_only(PROMPT)
        kept = engine.snapshot()
        n_bytes[name] = engine.native.stats().bytes_tail
        prompted = prompted_of("kl", NEXT, [])
        found = evaluate_case(engine, Numbers(), prompted, references)  # type: ignore[arg-type]
        references = found.log_probs if references is None else references
        kl[name] = found.figures["kl"]
        if name == "q8_0":
            compress_to(engine, kept, [list(range(4))] * sum(TINY.n_head_kv), N_OBS)
            kl["few rows"] = evaluate_case(engine, Numbers(), prompted, references).figures["kl"]  # type: ignore[arg-type]
            spoilt = replace(kept, rows=kept.rows.copy())
            blocks = spoilt.rows[-34 * (len(spoilt.rows) // 340) :].reshape(-1, 34)  # of V, in the last layer
            blocks[:] = blocks[::-1].copy()  # as by a kernel that reads the wrong rows
            engine.restore(spoilt, len(PROMPT) - 1)
            engine.read(PROMPT[-1:])
            kl["spoilt"] = evaluate_case(engine, Numbers(), prompted, references).figures["kl"]  # type: ignore[arg-type]
        llama.close()
    assert kl["f16"] == 0 < kl["q8_0"] < kl["q4_0"]
    assert min(kl["few rows"], kl["spoilt"]) > 3 * kl["q8_0"]
    assert n_bytes["q8_0"] / n_bytes["f16"] == 34 / 64 and n_bytes["q4_0"] / n_bytes["f16"] == 18 / 64


# ---- on the demo model ----


@pytest.fixture(scope="module")
def runner(library: None, demo_path: Path) -> Iterator[Runner]:
    llama = load(demo_path, n_ctx=512, n_threads=1)
    yield Runner(llama, shape_from_metadata(read_gguf_metadata(demo_path)))
    llama.close()


@pytest.fixture(scope="module")
def readings(runner: Runner) -> list[CacheReading]:
    """Two cases that the whole cache answers."""
    found = []
    for case in make_cases("single", 6, LENGTH, 0, Prose(), runner.sizes):
        reading = runner.read(case)
        if reading.full.figures["score"] == 1:
            found.append(reading)
        if len(found) == 2:
            return found
    raise AssertionError("the demo model should find needles in short texts")


def positions_of(runner: Runner, reading: CacheReading, part: str) -> set[int]:
    case = reading.prompted.case
    prompt = runner.case_prompter.prompter.prompt(case.message, case.answer_prefix)
    assert prompt.tokens == reading.snapshot.tokens
    return set(prompt.positions(part).tolist())


def keep(runner: Runner, reading: CacheReading, positions: set[int]) -> dict[str, float]:
    n_before = len(reading.snapshot.tokens) - N_OBS
    head = sorted(position for position in positions if position < n_before)
    compress_to(runner.engine, reading.snapshot, [head] * runner.shape.n_kv_heads, N_OBS)
    return evaluate_case(runner.engine, runner.case_prompter.prompter, reading.prompted, reading.log_probs).figures


def test_oracles(runner: Runner, readings: list[CacheReading]) -> None:
    for reading in readings:
        everything = set(range(len(reading.snapshot.tokens)))
        answer = positions_of(runner, reading, reading.prompted.case.answers[0])
        first = min(answer)
        needle = (
            set(range(first - 24, max(answer) + 2))
            | set(range(4))
            | positions_of(runner, reading, reading.prompted.case.question)
        )
        found = keep(runner, reading, needle)
        assert found["score"] == reading.full.figures["score"] == 1
        assert found["loglik"] == pytest.approx(reading.full.figures["loglik"], abs=0.5)
        without = keep(runner, reading, everything - answer)
        assert without["score"] == 0 and without["digits"] < 0.6
        assert without["loglik"] < reading.full.figures["loglik"] - 0.5
        assert keep(runner, reading, everything)["score"] == 1


def trial(policy: str, budget: str) -> Trial:
    return Trial(policy, parse_policy(policy), Budget.parse(budget))


def test_everything_kept_is_the_full_cache_and_little_is_less(runner: Runner, readings: list[CacheReading]) -> None:
    whole = runner.measure(readings[0], trial("snapkv", "100%"))
    assert whole.figures == pytest.approx(readings[0].full.figures, abs=0.02) and whole.keep_ratio == 1
    little = runner.measure(readings[0], trial("snapkv", "8%"))
    assert little.figures["score"] == 0 and little.keep_ratio == pytest.approx(0.08, abs=0.01)
    assert little.bytes_kept == round(little.keep_ratio * little.bytes_full) and "beta" not in little.resolved
    again = runner.measure(readings[0], trial("snapkv", "100%"))
    assert again.output == whole.output
    assert runner.measure(readings[0], trial("snapkv", "full")) is readings[0].full


def test_question_after(runner: Runner, readings: list[CacheReading]) -> None:
    case = readings[0].prompted.case
    reading = runner.read(case, AFTER)
    text = b"".join(map(runner.case_prompter.prompter.piece, reading.snapshot.tokens)).decode()
    rest = b"".join(map(runner.case_prompter.prompter.piece, reading.prompted.rest)).decode()
    assert text.endswith(case.context[-20:]) and rest.strip().startswith(case.question)
    assert reading.snapshot.tokens + reading.prompted.rest == readings[0].snapshot.tokens
    assert reading.full.figures == pytest.approx(readings[0].full.figures, abs=0.02)
    assert runner.measure(reading, trial("snapkv", "100%")).figures["score"] == 1
    with pytest.raises(EvaluationError, match="looks ahead at the answer"):
        runner.measure(reading, trial("snapkv:lookahead=4", "50%"))


def test_kl_notices_lost_rows(runner: Runner) -> None:
    (case,) = make_cases("kl", 1, 200, 0, Prose(), runner.sizes)
    case = replace(case, max_new_tokens=12)
    reading = runner.read(case)
    prose = {name: reading.full.figures[name] for name in ("perplexity", "ms_token")}
    assert reading.full.figures == {"kl": 0, "top1": 1, **prose} and len(reading.prompted.rest) == 12
    assert len(reading.snapshot.tokens) == 200
    everything = keep(runner, reading, set(range(200)))
    little = keep(runner, reading, set(range(4)))
    assert 0 <= everything["kl"] < 0.02 and little["kl"] > 5 * everything["kl"] + 0.05
    assert everything["top1"] > little["top1"] - 0.01
    assert everything["perplexity"] == pytest.approx(reading.full.figures["perplexity"], rel=0.05)


def test_what_does_not_fit_is_refused(runner: Runner) -> None:
    (case,) = make_cases("single", 1, 600, 0, Prose(), runner.sizes)
    with pytest.raises(EvaluationError, match=r"case single_600_0_0 needs \d+ positions, the context has 512"):
        runner.read(case)
    with pytest.raises(EvaluationError, match="tokens of prose, 5128 are needed"):
        runner.read(replace(make_cases("kl", 1, 200, 0, Prose(), runner.sizes)[0], n_tokens=5000))


def test_chats_are_measured_through_the_session(demo_path: Path, library: None) -> None:
    """With an archive the text is read once for all trials, and answers are those of a chat of its own."""
    shape = shape_from_metadata(read_gguf_metadata(demo_path))
    trial = Trial("snapkv", parse_policy("snapkv"), Budget.parse("50%"))
    with open_talk_runner(demo_path, shape, 320, 2, print) as runner:
        [talk] = make_talks(1, 2, 320, 0, Prose(), runner.sizes)
        reading = runner.read(talk, "in")
        kinds = ("archive", "as-generated", "none", "archive")
        first, generated, none, again = (runner.measure(reading, TalkTrial(trial, kind)) for kind in kinds)
    assert set(reading.full.figures) == {"turn 1", "turn 2", "score"}
    assert (first.output, first.figures, first.n_prompt) == (again.output, again.figures, again.n_prompt)
    assert first.output.split(" | ")[0] == none.output.split(" | ")[0] == generated.output.split(" | ")[0]
    assert first.bytes_measured < reading.full.bytes_full and reading.full.keep_ratio == 1.0
