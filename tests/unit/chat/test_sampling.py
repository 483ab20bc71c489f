"""Who says how answers are chosen: the command line over the file over llama-cli's defaults, and what is refused."""

from __future__ import annotations

import pytest

from pyheadkv.chat.sampling import SETTINGS, Sampling, sampling_of_file
from pyheadkv.errors import UsageError

FILE = {
    "general.architecture": "llama",
    "general.sampling.temp": "0.200000",  # as llama.cpp hands it on
    "general.sampling.top_k": 20,
    "general.sampling.penalty_repeat": "1.05",
}


def test_file_over_defaults_and_flags_over_both() -> None:
    sampling = sampling_of_file(Sampling(), FILE).having({"top-k": 7, "seed": 3})
    assert sampling == Sampling(temp=0.2, top_k=7, repeat_penalty=1.05, seed=3)
    options = sampling.options()
    assert (options["temperature"], options["top_k"], options["top_p"], options["min_p"]) == (0.2, 7, 0.95, 0.05)
    assert (options["repeat_penalty"], options["seed"]) == (1.05, 3)


def test_greedy_at_0_and_random_without_a_seed() -> None:
    assert Sampling(temp=0.0).options()["temperature"] == 0
    for sampling in (Sampling(), Sampling(seed=-1)):
        assert len({sampling.options()["seed"] for _ in range(4)}) > 1
    assert [Sampling(max_tokens=n).options()["max_tokens"] for n in (-1, 0, 7)] == [None, 1, 7]
    stop = Sampling(max_tokens=0).options()["stopping_criteria"]
    assert stop([], []) and Sampling().options()["stopping_criteria"] is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temp", "hot", "temp is hot, expected a number from 0 to 100"),
        ("temp", -0.1, "temp is -0.1, expected a number from 0 to 100"),
        ("temp", float("nan"), "temp is nan, expected"),
        ("temp", float("inf"), "temp is inf, expected"),
        ("top-p", 1.5, "top-p is 1.5, expected a number from 0 to 1"),
        ("min-p", True, "min-p is True, expected"),
        ("top-k", 2.5, "top-k is 2.5, expected a whole number from 0 to 2147483647"),
        ("top-k", 2**31, "expected a whole number from 0 to 2147483647"),
        ("repeat-penalty", 0, "repeat-penalty is 0, expected a number from 0.01 to 100"),
        ("seed", 2**32, "expected a whole number from -1 to 4294967295"),
        ("n-predict", -2, "n-predict is -2, expected a whole number from -1 to 2147483647"),
        ("heat", 1, "no setting heat, known are temp, top-k, top-p, min-p, repeat-penalty, seed, n-predict"),
    ],
)
def test_bad_values_are_one_line(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        Sampling().having({name: value})
    assert message in str(caught.value)


def test_keys_of_a_file_that_are_not_followed_are_named() -> None:
    notices: list[str] = []
    keys = {"general.sampling.top_p": 7, "general.sampling.mirostat": 2, "general.sampling.top_k": 9}
    assert sampling_of_file(Sampling(), keys, notices.append) == Sampling(top_k=9)
    assert notices == [
        "the model's general.sampling.top_p is not followed: top-p is 7, expected a number from 0 to 1",
        "the model's general.sampling.mirostat is not followed: there is no such setting here",
    ]
    sampling_of_file(Sampling(), keys)


def test_keys_are_those_of_gguf() -> None:
    gguf = pytest.importorskip("gguf")
    known = {value for name, value in vars(gguf.Keys.General).items() if name.startswith("SAMPLING_")}
    assert {f"general.sampling.{setting.key}" for setting in SETTINGS.values() if setting.key} <= known
