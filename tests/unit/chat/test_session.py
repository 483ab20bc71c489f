"""HeadKV on a Llama without a model: what is read, compressed, reused and refused, and that nothing gets lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyheadkv.cache.prefill import Stage
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.abi import STATUS_COMPUTE, STATUS_NO_MEMORY
from pyheadkv.errors import BudgetError, ModelError, NativeError, ProfileError, UsageError
from pyheadkv.profile import Profile
from tests.unit.fake_llama import N_HEADS, FakeLlama, without_library

Make = Callable[..., HeadKV]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    without_library(monkeypatch)
    return lambda llama=None, **options: HeadKV(
        llama or FakeLlama(), **({"policy": "snapkv", "sweep": False} | options)
    )


def answer(headkv: HeadKV, prompt: list[int], n: int = 3) -> list[int]:
    stream = headkv.llama.generate(prompt)
    tokens = [next(stream) for _ in range(n)]
    stream.close()
    assert_holds_conversation(headkv, [*prompt, *tokens[:-1]])
    return tokens


def assert_holds_conversation(headkv: HeadKV, tokens: list[int]) -> None:
    llama = headkv.llama
    assert llama.memory.tokens == tokens
    assert llama.input_ids[: llama.n_tokens].tolist() == tokens


def prompt_of(n: int, first: int = 1) -> list[int]:
    return [(first + i) % 997 for i in range(n)]


def test_long_prompt_is_compressed_with_its_last_tokens_as_window(make: Make) -> None:
    headkv = make(budget="25%")
    answer(headkv, prompt_of(400))
    memory = headkv.llama.memory
    assert memory.calls == ["observe(16)", "reserve", "compress"]
    assert memory.reserved == 400
    assert memory.n_prefix == 400 - 16
    assert headkv.is_compressed and headkv.plan is not None
    assert memory.rows.sum() == headkv.plan.rows_kept == N_HEADS * 100
    assert headkv.llama.batches == [64] * 6 + [16, 1, 1]


def test_window_larger_than_a_batch(make: Make) -> None:
    headkv = make(FakeLlama(n_batch=8), policy="snapkv:n_obs=20")
    answer(headkv, prompt_of(300))
    assert headkv.is_compressed


@pytest.mark.parametrize(("n", "budget"), [(255, "25%"), (300, "full"), (300, "512"), (300, "1GiB")])
def test_left_whole(make: Make, n: int, budget: str) -> None:
    headkv = make(budget=budget)
    answer(headkv, prompt_of(n))
    assert not headkv.is_compressed and headkv.plan is None
    assert headkv.report()["budget"]["keep_ratio"] == 1
    assert headkv.report()["kv"]["rows_kept"] == headkv.report()["kv"]["rows_full"]


def test_budget_of_everything_still_makes_a_prefix(make: Make) -> None:
    headkv = make(budget="100%")
    answer(headkv, prompt_of(300))
    assert headkv.is_compressed
    assert headkv.plan.rows_kept == headkv.plan.rows_full


def test_next_turn_reads_only_new_tokens_onto_the_tail(make: Make) -> None:
    headkv = make()
    prompt = prompt_of(400)
    first = answer(headkv, prompt)
    headkv.llama.batches.clear()
    answer(headkv, [*prompt, *first, 5, 6, 7])
    assert headkv.llama.batches == [4, 1, 1]  # the last token of the answer had not been evaluated
    assert headkv.llama.memory.n_prefix == 384
    assert headkv.stats().n_read == 4 and headkv.stats().n_prompt == 406


def test_same_prompt_again_replays_one_token_of_the_tail(make: Make) -> None:
    headkv = make()
    answer(headkv, prompt_of(400))
    headkv.llama.batches.clear()
    answer(headkv, prompt_of(400))
    assert headkv.llama.batches == [1, 1, 1]
    assert headkv.is_compressed


@pytest.mark.parametrize("at", [0, 1, 200, 383])
def test_change_before_the_tail_is_read_again_and_said(make: Make, at: int) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append)
    prompt = prompt_of(400)
    answer(headkv, prompt)
    prompt[at] = 999
    answer(headkv, prompt)
    assert notices == ["the conversation changed before position 384: reading it again"]
    assert headkv.stats().n_read == 400
    assert headkv.llama.memory.calls.count("compress") == 2


@pytest.mark.parametrize("at", [384, 390, 399])
def test_change_inside_the_tail_needs_no_reading_again(make: Make, at: int) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append)
    prompt = prompt_of(400)
    answer(headkv, prompt)
    prompt[at] = 999
    answer(headkv, prompt)
    assert notices == []
    assert headkv.stats().n_read + headkv.stats().n_decoded == 400 - at + 2


def test_clear_forgets_without_a_notice(make: Make) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append)
    answer(headkv, prompt_of(400))
    headkv.clear()
    assert not headkv.is_compressed and headkv.plan is None
    answer(headkv, prompt_of(300, first=50))
    assert notices == []


def test_document_longer_than_the_chat_so_far_is_compressed_with_it(make: Make) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append)
    prompt = prompt_of(300)
    first = answer(headkv, prompt)
    answer(headkv, [*prompt, *first, *prompt_of(500)])
    assert notices == ["501 new tokens after 302: reading all again to compress them together"]
    assert headkv.plan.n_prompt == 803
    assert headkv.llama.memory.n_prefix == 803 - 16


def test_short_turns_are_compressed_once_they_are_long_together(make: Make) -> None:
    headkv = make()
    prompt = prompt_of(250)
    prompt += answer(headkv, prompt)
    assert not headkv.is_compressed
    prompt += [7, 8, 9, 10]  # fewer than the observation window: cached tokens are taken back into it
    answer(headkv, prompt)
    assert headkv.is_compressed
    assert headkv.llama.memory.n_prefix == len(prompt) - 16


def test_generated_tokens_alone_never_compress(make: Make) -> None:
    headkv = make()
    answer(headkv, prompt_of(250), n=100)
    assert not headkv.is_compressed


@pytest.mark.parametrize("n_prompt", [250, 400])
def test_drafted_tokens_are_not_taken_for_a_prompt(make: Make, n_prompt: int) -> None:
    headkv = make()
    headkv.llama.n_drafts = 30
    answer(headkv, prompt_of(n_prompt), n=20)
    assert headkv.is_compressed == (n_prompt == 400)
    assert headkv.stats().n_read == n_prompt


def test_callers_own_loop_of_eval(make: Make) -> None:
    headkv = make()
    headkv.llama.eval(prompt_of(400))
    headkv.llama.eval([5])
    assert headkv.is_compressed
    stats = headkv.stats()
    assert (stats.n_prompt, stats.n_read, stats.n_decoded) == (400, 400, 1)
    headkv.llama.n_tokens = 10  # a cut inside the prefix, whose refusal Llama.eval ignores
    headkv.llama.eval([6])
    assert_holds_conversation(headkv, [*prompt_of(10), 6])


def test_no_memory_to_compress_goes_on_uncompressed(make: Make) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append)
    headkv.llama.memory.fail["compress"] = STATUS_NO_MEMORY
    answer(headkv, prompt_of(400))
    assert notices == ["the chat goes on uncompressed: compress failed"]
    assert not headkv.is_compressed and headkv.plan is None
    assert headkv.llama.memory.calls[-1] == "observe(0)"  # disarmed


def test_no_memory_to_score_goes_on_uncompressed(make: Make) -> None:
    headkv = make()
    headkv.llama.memory.fail["observe"] = STATUS_NO_MEMORY
    answer(headkv, prompt_of(400))
    assert not headkv.is_compressed


def test_other_failures_are_raised_and_the_next_turn_works(make: Make) -> None:
    headkv = make()
    headkv.llama.memory.fail["compress"] = STATUS_COMPUTE
    with pytest.raises(NativeError, match="compress failed"):
        answer(headkv, prompt_of(400))
    assert_holds_conversation(headkv, prompt_of(400))
    assert headkv.llama.memory.observing == 0
    answer(headkv, prompt_of(420))
    assert headkv.is_compressed


@pytest.mark.parametrize("batches", [0, 3, 6])  # 6: inside the observation window
def test_interrupt_while_reading_leaves_a_chat_that_goes_on(make: Make, batches: int) -> None:
    headkv = make()
    headkv.llama.interrupt_after = batches
    with pytest.raises(KeyboardInterrupt):
        answer(headkv, prompt_of(400))
    assert not headkv.is_compressed
    assert headkv.llama.memory.observing == 0
    assert headkv.llama.n_tokens == batches * 64
    answer(headkv, prompt_of(400))
    assert headkv.is_compressed
    assert headkv.stats().n_read == 400 - batches * 64


def test_progress_counts_up_to_the_prompt(make: Make) -> None:
    seen: list[tuple[int, int]] = []
    headkv = make(on_progress=lambda done, total: seen.append((done, total)))
    answer(headkv, prompt_of(400))
    assert seen == [(64 * i, 400) for i in range(1, 7)] + [(400, 400)]


def test_prompt_beyond_the_context_is_refused_before_it_is_read(make: Make) -> None:
    headkv = make(FakeLlama(n_ctx=512))
    with pytest.raises(UsageError, match="prompt of 600 tokens is longer than the context of 512"):
        headkv.llama.eval(prompt_of(600))
    assert headkv.llama.memory.tokens == []


def test_counts_and_times(make: Make) -> None:
    headkv = make()
    answer(headkv, prompt_of(400), n=5)
    stats = headkv.stats()
    assert (stats.n_prompt, stats.n_read, stats.n_generated, stats.n_decoded) == (400, 400, 5, 4)
    assert stats.ms_prefill > 0 and stats.ms_decode > 0 and stats.tok_s_decode > 0
    report = headkv.report()
    assert report["kv"]["bytes_measured"] == stats.native.bytes_hot + stats.native.bytes_tail
    assert sum(map(sum, report["kv"]["rows_per_head"])) == report["kv"]["rows_kept"] == report["budget"]["rows"]
    assert report["kv"]["bytes_full"] == 400 * N_HEADS * 256
    assert stats.bytes_full == 404 * N_HEADS * 256


def test_states_are_not_saved_while_compressed(make: Make) -> None:
    headkv = make()
    answer(headkv, prompt_of(100))
    state = headkv.llama.save_state()
    answer(headkv, prompt_of(400))
    with pytest.raises(UsageError, match="compressed cache cannot be saved"):
        headkv.llama.save_state()
    headkv.llama.load_state(state)
    assert not headkv.is_compressed
    with pytest.raises(UsageError, match="set_cache"):
        headkv.llama.set_cache(SimpleNamespace())
    headkv.llama.set_cache(None)


def test_close_gives_the_llama_back(make: Make) -> None:
    llama = FakeLlama()
    with make(llama) as headkv:
        with pytest.raises(UsageError, match="has a HeadKV already"):
            make(llama)
        assert headkv.llama.eval == headkv._eval
    assert llama.eval.__func__ is FakeLlama.eval
    make(llama).close()


def test_settings_that_cannot_work_are_refused_at_once(make: Make) -> None:
    with pytest.raises(BudgetError, match="floor of 20 rows"):
        make(budget="8")
    with pytest.raises(ProfileError, match="needs a profile"):
        make(policy="headkv")
    with pytest.raises(ProfileError, match="3 KV heads in 1 layers"):
        make(policy="headkv", profile=Profile(((0.5, 0.3, 0.2),), "test"))
    cached = FakeLlama()
    cached.cache = SimpleNamespace()
    with pytest.raises(UsageError, match="set_cache"):
        make(cached)
    odd = FakeLlama()
    odd.context_params.type_v = 12
    with pytest.raises(ModelError, match="type_v is ggml type 12"):
        make(odd)


def test_decode_failure_names_the_position(make: Make) -> None:
    headkv = make()
    headkv.llama.memory.tokens = [1, 2, 3]
    headkv.llama._ctx.kv_cache_seq_rm = lambda *_: False
    with pytest.raises(NativeError, match=r"after position 0: the batch is invalid \(status -1\)"):
        headkv.llama.eval([1, 2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=6))
def test_any_chat_keeps_cache_and_conversation_together(turns: list[tuple[int, int, int]]) -> None:
    """Each turn goes back to some position, adds new tokens there and generates."""
    with pytest.MonkeyPatch.context() as patch:
        without_library(patch)
        headkv = HeadKV(FakeLlama())
        tokens: list[int] = []
        for turn, (keep, n_new, n_generated) in enumerate(turns):
            prompt = [*tokens[:keep], *prompt_of(n_new, first=100 * turn)]
            tokens = [*prompt, *answer(headkv, prompt, n_generated)]


def test_lookahead_compresses_after_the_first_tokens_of_the_answer(make: Make) -> None:
    headkv = make(policy="snapkv:lookahead=8", budget="25%")
    answer(headkv, prompt_of(400), 8)  # the last one is not evaluated yet
    assert not headkv.is_compressed and headkv.plan is None
    answer(headkv, prompt_of(400, first=7), 9)
    assert headkv.is_compressed
    memory = headkv.llama.memory
    assert memory.calls.count("observe(24)") == 2
    assert memory.n_prefix == 400 - 16  # the window and the lookahead are in the tail
    assert headkv.plan is not None and headkv.plan.n_prompt == 400
    assert (memory.rows == headkv.plan.flat_rows() + 8).all()


def test_answer_that_ends_before_the_lookahead_is_compressed_with_the_next_prompt(make: Make) -> None:
    headkv = make(policy="snapkv:lookahead=8", budget="25%")
    first = prompt_of(400)
    said = answer(headkv, first, 3)
    second = [*first, *said, *prompt_of(300, first=5)]
    answer(headkv, second, 12)
    assert headkv.is_compressed
    assert headkv.plan is not None and headkv.plan.n_prompt == len(second)


def test_lookahead_is_forgotten_with_the_conversation(make: Make) -> None:
    headkv = make(policy="snapkv:lookahead=8", budget="25%")
    answer(headkv, prompt_of(400), 3)
    headkv.clear()
    answer(headkv, prompt_of(50), 20)  # short: nothing to compress
    assert not headkv.is_compressed
    assert headkv.llama.memory.observing == 0


def test_lookahead_is_forgotten_with_a_loaded_state(make: Make) -> None:
    headkv = make(policy="snapkv:lookahead=8", budget="25%")
    answer(headkv, prompt_of(100))
    state = headkv.llama.save_state()
    answer(headkv, prompt_of(400, first=7), 3)
    headkv.llama.load_state(state)
    assert headkv.llama.memory.observing == 0
    headkv.llama.eval([5])  # far from the end of the lookahead, but it must not be compressed there later either
    assert not headkv.is_compressed and headkv._prefill.stage is Stage.WHOLE


def test_no_memory_after_the_lookahead_goes_on_uncompressed(make: Make) -> None:
    notices: list[str] = []
    headkv = make(policy="snapkv:lookahead=8", budget="25%", on_notice=notices.append)
    headkv.llama.memory.fail["compress"] = STATUS_NO_MEMORY
    answer(headkv, prompt_of(400), 20)
    assert not headkv.is_compressed
    assert len(notices) == 1 and notices[0].startswith("the chat goes on uncompressed")


def test_lookahead_and_drafts_do_not_go_together(make: Make) -> None:
    llama = FakeLlama()
    llama.draft_model = object()
    with pytest.raises(UsageError, match="does not go with a draft model"):
        make(llama, policy="snapkv:lookahead=8")


def test_prompt_is_repeated_before_its_window_is_read(make: Make) -> None:
    headkv = make(policy="uniform+kvzip:n_obs=16", budget="25%")
    answer(headkv, prompt_of(400))
    memory = headkv.llama.memory
    assert memory.calls == [
        "reserve",
        "observe(384)",
        *["attention_read"] * 2,
        "observe(0)",  # the window is not observed
        "compress",
    ]
    assert headkv.llama.batches == [64] * 6 + [64] * 6 + [16, 1, 1]
    assert memory.n_prefix == 384 and headkv.stats().n_read == 400
    assert headkv.stats().ms_reconstruction > 0
    answer(headkv, [*prompt_of(400), *prompt_of(20, first=7)])
    assert memory.calls.count("compress") == 1  # a second turn goes into the tail


@pytest.mark.parametrize("n_obs", [16, 1])  # with 1, the same prompt again is read by a single token
@pytest.mark.parametrize("batches", [8, 11])
def test_interrupt_while_repeating_leaves_the_prompt_alone(make: Make, batches: int, n_obs: int) -> None:
    headkv = make(policy=f"kvzip:n_obs={n_obs}", budget="25%")
    headkv.llama.interrupt_after = batches
    with pytest.raises(KeyboardInterrupt):
        answer(headkv, prompt_of(400))
    assert_holds_conversation(headkv, prompt_of(400 - n_obs))
    assert headkv.llama.memory.observing == 0 and not headkv.is_compressed
    answer(headkv, prompt_of(400))
    assert headkv.is_compressed


@pytest.mark.parametrize("method", ["observe", "attention_read"])
@pytest.mark.parametrize("status", [STATUS_NO_MEMORY, STATUS_COMPUTE])
def test_failure_while_repeating_leaves_a_whole_cache(make: Make, method: str, status: int) -> None:
    notices: list[str] = []
    headkv = make(policy="kvzip:n_obs=16", budget="25%", on_notice=notices.append)
    headkv.llama.memory.fail[method] = status
    if status == STATUS_NO_MEMORY:
        answer(headkv, prompt_of(400))
        assert notices == [f"the chat goes on uncompressed: {method} failed"]
    else:
        with pytest.raises(NativeError, match=f"{method} failed"):
            answer(headkv, prompt_of(400))
        assert_holds_conversation(headkv, prompt_of(384))
    assert not headkv.is_compressed and headkv.llama.memory.observing == 0


def test_no_room_to_repeat_is_refused_before_the_prompt_is_read(make: Make) -> None:
    headkv = make(FakeLlama(n_ctx=430), policy="kvzip:n_obs=16", budget="25%")
    with pytest.raises(UsageError, match="46 positions of the context of 430 are free, 72 are needed"):
        headkv.llama.eval(prompt_of(400))
    assert headkv.llama.memory.tokens == []


@pytest.mark.parametrize(
    ("n_prompt", "cut", "n_new", "is_read_again"),
    [
        (400, 402, 402, False),  # as many as were there
        (400, 402, 403, True),
        (400, 402, 300, False),  # more than min_prompt, fewer than were there
        (256, 245, 250, False),  # more than are left, but too few to be compressed alone
        (256, 245, 257, True),
    ],
)
def test_when_new_tokens_are_compressed_with_the_old(
    make: Make, n_prompt: int, cut: int, n_new: int, is_read_again: bool
) -> None:
    notices: list[str] = []
    headkv = make(on_notice=notices.append, min_prompt=256)
    said = [*prompt_of(n_prompt), *answer(headkv, prompt_of(n_prompt))]
    assert headkv.is_compressed
    answer(headkv, [*said[:cut], *(token + 500 for token in range(n_new))])
    assert any("reading all again" in notice for notice in notices) == is_read_again
    assert headkv.llama.memory.calls.count("compress") == 1 + is_read_again


@pytest.mark.parametrize(("n_tokens", "n_cells"), [(300, 300), (0, 1)])
def test_a_state_finds_room_for_its_tokens(make: Make, n_tokens: int, n_cells: int) -> None:
    """An elastic cache has a few cells, and the library refuses to make a cache of none."""
    seen: list[int] = []

    class Watched(FakeLlama):
        def load_state(self, state: SimpleNamespace) -> None:
            seen.append(self.memory.reserved)
            super().load_state(state)

    make(Watched()).llama.load_state(SimpleNamespace(n_tokens=n_tokens))
    assert seen == [n_cells]
