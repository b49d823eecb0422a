"""Recorded decoding steps: the tokens of the others, from buffers that never move, and nobody else's page touched."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request, SamplingParams, graphs, staging
from penstock_engine.forward_batch import IN_FLIGHT
from penstock_engine.graphs import Bucket, context_buckets, row_buckets
from penstock_kernels.checks import ShapeError
from torch import Tensor

from tests.engine.driving import Run, greedy, parity, run_all
from tests.engine.parity_table import LOGPROB_TOLERANCE
from tests.engine.recording import Again, Reruns, Trial, use_gpu_layers, use_references
from tests.engine.tiny import TinyModel, random_prompt

CONTEXTS = (20, 80, 100)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts come in short buckets."""
    use_gpu_layers(monkeypatch)
    monkeypatch.setattr(graphs, "SHORTEST_CONTEXT", CONTEXTS[0])


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    use_references(monkeypatch)


def engine_of(model: TinyModel, **settings: Any) -> Engine:
    config = EngineConfig(**{"dtype": "float32", "max_model_len": CONTEXTS[-1], "page_size": Trial.PAGE, **settings})
    engine = Engine.from_folder(model.folder, config)
    engine.warm_up()
    return engine


@pytest.fixture
def model(models: Any) -> TinyModel:
    made: TinyModel = models("llama", num_hidden_layers=2)
    return made


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Bucket]]:
    """(rows, the bucket that held them) of each recorded step."""
    steps: list[tuple[int, Bucket]] = []
    right = graphs.GraphPlan.holding

    def noted(plan: graphs.GraphPlan, count: int, context: int) -> Bucket:
        steps.append((count, right(plan, count, context)))
        return steps[-1][1]

    monkeypatch.setattr(graphs.GraphPlan, "holding", noted)
    return steps


class TestBuckets:
    def test_every_batch_has_one_and_little_of_it_is_padding(self) -> None:
        for most in (1, 3, 8, 40, 64, 500, 512):
            sizes = row_buckets(most)
            assert sizes[-1] == most
            assert sorted(set(sizes)) == list(sizes)
        sizes = row_buckets(512)
        assert (sizes[:7], len(sizes)) == ((1, 2, 4, 8, 16, 24, 32), 25)
        held = {count: next(size for size in sizes if size >= count) for count in range(1, 513)}
        assert max(size / count for count, size in held.items() if count > 16) < 1.5
        assert max(size / count for count, size in held.items() if count > 128) < 1.25

    def test_larger_steps_than_the_largest_have_none(self) -> None:
        assert row_buckets(4096) == row_buckets(512)

    def test_contexts_end_with_the_longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        assert context_buckets(131_072) == (4096, 16_384, 65_536, 131_072)
        assert context_buckets(16_384) == (4096, 16_384)
        assert context_buckets(2048) == (2048,)


def trial_of(model: TinyModel) -> Trial:
    return Trial(engine_of(model, max_running=8, kv_pages=12)._runner)


def traffic(longer: int) -> list[Request]:
    """Requests that leave one after another, on contexts that grow from bucket to bucket."""
    drawn = SamplingParams(temperature=0.9, top_p=0.9, top_k=30, seed=5, max_tokens=14, ignore_eos=True, logprobs=2)
    prompts = [random_prompt(length, seed=length) for length in (3, 1, 17, 16, 30, 9, 15, 70, 5)]
    mixed = [Request(f"r{at}", prompt, greedy(9 + at + longer)) for at, prompt in enumerate(prompts)]
    return [*mixed, Request("drawn", random_prompt(12, seed=0), drawn), Request("last", [5], greedy(22))]


def told(run: Run) -> dict[str, list[int]]:
    return {name: run.tokens(name) for name in run.deltas}


@pytest.mark.usefixtures("references")
class TestReplays:
    @pytest.mark.parametrize(("crowded", "overlap"), [(False, "off"), (False, "on"), (True, "on")])
    def test_tokens_are_those_of_steps_that_are_not_recorded(
        self, model: TinyModel, replayed: list[tuple[int, Bucket]], crowded: bool, overlap: str
    ) -> None:
        """All buckets of rows and of context have their turn; requests join and leave, or are preempted."""
        settings = {"max_running": 9, "token_budget": 200, "kv_pages": 8 if crowded else 30, "overlap": overlap}
        requests = traffic(longer=20 if crowded else 0)
        engine = engine_of(model, **settings)
        replayed.clear()  # what warmed it up
        run = run_all(engine, requests)
        steps = [*replayed]
        expected = run_all(engine_of(model, graphs="off", **{**settings, "overlap": "off"}), requests)
        assert [*replayed] == steps, "the other engine has recorded steps too"

        assert told(run) == told(expected)
        assert bool(engine.stats().preemptions) is crowded
        greedy_ones = [each for each in requests if each.id != "drawn"]
        found = parity(model, greedy_ones, run)
        assert (found.wrong, found.tokens) == (0, sum(len(run.deltas[each.id]) for each in greedy_ones))
        assert found.worst_logprob < LOGPROB_TOLERANCE
        for ours, theirs in zip(run.deltas["drawn"], expected.deltas["drawn"], strict=True):
            assert [token for token, _ in ours.top_logprobs] == [token for token, _ in theirs.top_logprobs]
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert crowded or {bucket.rows for _, bucket in steps} == {1, 2, 4, 8, 9}
        assert {bucket.context for _, bucket in steps} == set(CONTEXTS)
        assert any(count < bucket.rows for count, bucket in steps)

    def test_every_bucket_up_to_thirty_three_rows_has_its_turn(
        self, model: TinyModel, replayed: list[tuple[int, Bucket]]
    ) -> None:
        requests = [Request(f"r{at}", random_prompt(2, seed=at), greedy(2 + at)) for at in range(33)]
        settings = {"max_running": 33, "token_budget": 66, "kv_pages": 99}
        run = run_all(engine_of(model, **settings), requests)
        assert {bucket.rows for _, bucket in replayed} == {*row_buckets(33)}
        assert {count for count, _ in replayed} == {*range(1, 34)}
        assert told(run) == told(run_all(engine_of(model, graphs="off", **settings), requests))

    def test_padding_touches_the_null_page_alone(self, model: TinyModel) -> None:
        trial = trial_of(model)
        trial.replayed()
        assert trial.written() == {0, *trial.own_slots}

    def test_what_a_recording_reads_outlives_the_recording(
        self, model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a GPU it is read by its address: memory given back meanwhile would be another's."""
        read: list[Tensor] = []

        def record(recorder: Reruns, run: Callable[[], Tensor]) -> Again:
            read.extend(tensors_of(inspect.getclosurevars(run).nonlocals.values()))
            return Again(run)

        monkeypatch.setattr(Reruns, "record", record)
        runner = engine_of(model, max_running=2, kv_pages=4)._runner
        kept = {each.untyped_storage().data_ptr() for each in (runner.graphs._landed, runner._sampler.latest)}
        assert len(read) >= 7
        assert {each.untyped_storage().data_ptr() for each in read} <= kept

    def test_what_the_host_does_not_know_yet_is_read_on_the_device(self, model: TinyModel) -> None:
        trial = trial_of(model)
        clean, latest, ids = trial.replayed(), trial.runner._sampler.latest, trial.layout.ids
        latest[trial.layout.rows[1]] = int(ids[1])
        ids[1] = IN_FLIGHT
        assert torch.equal(trial.replayed(), clean)
        assert torch.equal(trial.launched(), trial.launched())
        latest[trial.layout.rows[1]] += 1
        assert not torch.equal(trial.replayed()[1], clean[1])
        assert not torch.allclose(trial.launched()[1], clean[1], atol=1e-3)

    def test_a_step_that_is_not_all_decoding_is_not_recorded(
        self, model: TinyModel, replayed: list[tuple[int, Bucket]]
    ) -> None:
        engine = engine_of(model, max_running=4, token_budget=8)
        replayed.clear()
        engine.submit(Request("a", [1, 2, 3], greedy(9)))
        engine.step()
        engine.submit(Request("b", random_prompt(20, seed=1), greedy(2)))
        while engine._scheduler.waiting or any(each.remaining_len > 1 for each in engine._scheduler.running):
            engine.step()
            assert replayed == []
        engine.step()
        assert [rows for rows, _ in replayed] == [2]


def tensors_of(values: Iterable[Any]) -> list[Tensor]:
    """Those among `values`, and in tuples among them."""
    flat = [each for value in values for each in (value if isinstance(value, tuple) else [value])]
    return [each for each in flat if isinstance(each, Tensor)]


class Buffers(NamedTuple):
    """What a recording reads, in the order in which it is sent."""

    ids: Any
    rows: Any
    positions: Any
    slots: Any
    starts: Any
    lens: Any
    pages: Any


def spoilt(wrong: Callable[[Buffers], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """`wrong` changes what is sent."""
    right = staging.send_into

    def send(landed: Tensor, arrays: Any) -> list[Tensor]:
        sent = Buffers(*(each.copy() for each in arrays))
        wrong(sent)
        return right(landed, sent)

    return lambda monkeypatch: monkeypatch.setattr(graphs, "send_into", send)


def padding_on_a_page(sent: Buffers) -> None:
    sent.slots[3:] = 11 * Trial.PAGE  # nobody's, as yet


def no_padding_written(sent: Buffers) -> None:
    sent.slots[3:] = sent.slots[0]


def a_context_too_short(sent: Buffers) -> None:
    sent.lens[0] -= 1


def anothers_pages(sent: Buffers) -> None:
    sent.pages[1] = sent.pages[0]


def anothers_positions(sent: Buffers) -> None:
    sent.positions[:3] = sent.positions[:3][::-1].copy()


def anothers_ids(sent: Buffers) -> None:
    sent.ids[:3] = sent.ids[:3][::-1].copy()


def no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Again, "replay", lambda recording: None)


def a_bucket_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.GraphPlan, "holding", lambda plan, rows, context: Bucket(4, CONTEXTS[0]))


MUTANTS = {
    "padding on a page": spoilt(padding_on_a_page),
    "padding over a token": spoilt(no_padding_written),
    "a context too short": spoilt(a_context_too_short),
    "another's pages": spoilt(anothers_pages),
    "another's positions": spoilt(anothers_positions),
    "another's tokens": spoilt(anothers_ids),
    "no replay": no_replay,
}


@pytest.mark.usefixtures("references")
class TestTheCheckItself:
    def test_a_step_is_right(self, model: TinyModel) -> None:
        assert trial_of(model).is_right()

    @pytest.mark.parametrize("name", MUTANTS)
    def test_a_wrong_one_shows(self, model: TinyModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        trial = trial_of(model)
        MUTANTS[name](monkeypatch)
        assert not trial.is_right()

    def test_a_bucket_too_small_is_refused_by_the_kernels(
        self, model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trial = trial_of(model)
        a_bucket_too_small(monkeypatch)
        with pytest.raises(ShapeError):
            trial.replayed()


class TestWhatIsTold:
    @pytest.mark.usefixtures("references")
    def test_buckets_are_captured_by_warming_up(self, model: TinyModel) -> None:
        config = EngineConfig(dtype="float32", kv_pages=4, max_running=3, max_model_len=50)
        engine = Engine.from_folder(model.folder, config)
        assert engine.kernels["graphs"] == "none captured before warm_up"
        engine.warm_up()
        assert engine.kernels["graphs"] == f"{3 * 2} buckets captured"

    @pytest.mark.usefixtures("references")
    def test_a_pool_that_moved_is_recorded_anew(self, model: TinyModel) -> None:
        engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=8, max_running=2))
        engine.resize(engine.kv_bytes * 2)
        assert engine.kernels["graphs"] == "none captured before warm_up"
        engine.warm_up()
        before = dict(engine._runner.graphs._recordings)
        engine.resize(engine.kv_bytes * 2)
        after = engine._runner.graphs._recordings
        assert before.keys() == after.keys()
        assert not {id(each) for each in before.values()} & {id(each) for each in after.values()}

    @pytest.mark.parametrize(
        ("settings", "why"),
        [({"graphs": "off"}, "as asked for"), ({"kernels": "torch"}, "its layers run in torch")],
    )
    def test_what_is_in_the_way_is_named(self, model: TinyModel, settings: dict[str, Any], why: str) -> None:
        config = EngineConfig(dtype="float32", kv_pages=4, **settings)
        assert Engine.from_folder(model.folder, config).kernels["graphs"] == f"off ({why})"

    def test_experts_and_the_lane_of_fixed_bits_are_not_recorded(self, models: Any, model: TinyModel) -> None:
        sparse = models("mixtral", num_hidden_layers=1, num_local_experts=3)
        config = EngineConfig(dtype="float32", kv_pages=4)
        assert "each expert" in Engine.from_folder(sparse.folder, config).kernels["graphs"]
        lane = graphs.GraphPlan.of(
            Engine.from_folder(model.folder, config)._runner._model,
            replace(config, deterministic=True),
            torch.device("cpu"),
            64,
        )
        assert (lane.buckets, lane.obstacle[:7]) == ([], "padding")

    def test_a_device_without_graphs_says_nothing(self, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(graphs.RECORDERS, "cpu")
        assert "graphs" not in Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=4)).kernels

    @pytest.mark.usefixtures("references")
    def test_a_recording_that_fails_is_an_error(self, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        def record(recorder: Reruns, run: Callable[[], Tensor]) -> Again:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(Reruns, "record", record)
        engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=4, max_running=3))
        with pytest.raises(InvalidConfig, match=r"3 rows and 256 tokens cannot be recorded .operation not") as caught:
            engine.warm_up()
        assert caught.value.field == "graphs"

    def test_another_choice_is_refused(self) -> None:
        with pytest.raises(InvalidConfig, match="must be auto or off"):
            EngineConfig(graphs="on")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_the_kernels_of_a_gpu_are_recorded_alike(
    models: Any, replayed: list[tuple[int, Bucket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted: in one bucket of three rows, whose length has attention cut every context in two."""
    model = models("llama", num_hidden_layers=1)
    monkeypatch.setattr(graphs, "row_buckets", lambda most: (most,))
    monkeypatch.setattr(graphs, "SHORTEST_CONTEXT", 256)
    config = EngineConfig(dtype="float32", max_running=3, kv_pages=8)
    engine = Engine.from_folder(model.folder, config)
    engine._runner.graphs.capture()
    requests = [Request("a", random_prompt(5, seed=1), greedy(3)), Request("b", random_prompt(9, seed=2), greedy(4))]
    run = run_all(engine, requests)
    found = parity(model, requests, run)
    assert (found.wrong, found.tokens) == (0, 7)
    assert found.worst_logprob < LOGPROB_TOLERANCE
    assert replayed == [(2, Bucket(3, 256))] * 2 + [(1, Bucket(3, 256))]
