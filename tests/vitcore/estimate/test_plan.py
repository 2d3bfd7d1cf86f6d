"""What a plan makes of sizes and rates: time, data, checkpoints, and what to change where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vitcore.estimate.conftest import Plannable
from vitcore.errors import RequestError
from vitcore.estimate import hardware as known
from vitcore.estimate.cost import Share, Size
from vitcore.estimate.hardware import GPUS, LOOPBACK, Hardware, find
from vitcore.estimate.loading import Loading, measure_loading
from vitcore.estimate.plan import Planner, lengths
from vitcore.estimate.probe import probe
from vitcore.estimate.timing import Cluster
from vitcore.estimate.timing import step as timed
from vitcore.recipe import apply_overrides
from vitcore.train.precision import Precision, choose

FP32 = Precision("cpu", None)


def planner(plannable: Plannable, hardware: Hardware, name: str = "vit", rate: float = 1e6, **more: Any) -> Planner:
    asked = plannable(name, more.pop("batch_size", 32), **more)
    return Planner(asked, hardware, Loading(rate, 2), FP32, mfu=0.5)


def test_every_gpu_has_its_numbers_and_their_source() -> None:
    for gpu in GPUS.values():
        assert gpu.cuda
        assert gpu.source
        assert gpu.fp32 < (gpu.bf16 or 1e18)
        assert gpu.memory > 20 * 2**30
        assert gpu.link < gpu.bandwidth
    assert find("h100").peak(choose("auto", find("h100").capabilities)) == pytest.approx(989.4e12)
    assert find("v100").peak(choose("auto", find("v100").capabilities)) == pytest.approx(15.7e12)


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"did you mean .*h100"):
        find("H100-80")
    with pytest.raises(RequestError, match=r"there are v100, .* and cpu"):
        find("tpu")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(said: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(known.torch.cuda, "get_device_name", lambda: said)
    assert known.gpu_here() == find(name)
    assert [gpu.name for gpu in GPUS.values() if known.is_here(gpu)] == [name]


def test_this_machine_is_measured() -> None:
    half = known.cpu_here(workers=2, threads=1)
    assert 1e9 < half.fp32 < 1e13
    assert half.memory * 2 == pytest.approx(known.cpu_here(workers=1, threads=1).memory, rel=0.01)


def test_gradients_are_summed_in_rings() -> None:
    h100 = find("h100")
    assert Cluster(1, 1, h100, 50e9).all_reduce_s(10**9) == 0
    assert Cluster(1, 8, h100, 50e9).all_reduce_s(10**9) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    both = Cluster(4, 8, h100, 50e9).all_reduce_s(10**9)
    assert both == pytest.approx(2 * 7 / 8 * 1e9 / 450e9 + 2 * 3 / 4 * 1e9 / 50e9)


def test_what_computing_hides_is_not_waited_for(plannable: Plannable) -> None:
    plan = planner(plannable, find("h100"))
    size: Size = plan.size
    share = Share(8, 32, 8)
    cost = plan.cost(share)
    slow = Cluster(8, 1, find("h100"), 1e6)
    gradients = slow.all_reduce_s(cost.memory.gradients)
    given: dict[str, Any] = {"measured": True, "data_s": 0.0}
    waited = timed(slow, share, cost, size, compute_s=3.0, **given)
    assert waited.exposed == pytest.approx(
        max(gradients - 2.0, slow.all_reduce_s(min(25 * 2**20, cost.memory.gradients)))
    )
    assert waited.total == waited.compute + waited.exposed
    assert timed(slow, share, cost, size, compute_s=1e-3, **given).limit == "communication"
    assert timed(slow, share, cost, size, compute_s=1e3, **given).limit == "compute"
    # Of several micro-batches only the last one's backward pass hides anything.
    parts = timed(slow, replace(share, microbatch=8), cost, size, compute_s=3.0, **given)
    assert parts.exposed >= waited.exposed
    starved = timed(slow, share, cost, size, compute_s=1.0, measured=True, data_s=1e6)
    assert (starved.limit, starved.total) == ("data", 1e6)


def test_a_row_is_what_its_parts_say(plannable: Plannable) -> None:
    plan = planner(plannable, find("h100"))
    row = plan.row(Cluster(1, 2, find("h100"), 50e9))
    batch = plan.subject.recipe.train.batch_size
    assert (row.devices, row.slots) == (2, batch // 2)
    assert row.step.compute == pytest.approx(row.flops / 2 / (494.7e12 * 0.5))
    assert row.step.optimizer == pytest.approx(28 * plan.size.trained / 3350e9)
    assert row.images_per_s == pytest.approx(batch / row.step.total)
    assert row.train_s == pytest.approx(plan.lengths.steps * row.step.total)
    assert row.device_hours == 2 * row.hours
    assert row.hours == pytest.approx((row.train_s + row.validate_s + row.checkpoint_s) / 3600)
    split = plan.subject.dataset.split("train")
    assert row.needed_bytes_per_s == pytest.approx(row.needed_images_per_s * split.bytes / split.samples)
    assert row.fits
    assert row.advice is None


def test_a_slow_loader_limits(plannable: Plannable) -> None:
    row = planner(plannable, find("h100"), rate=10.0).row(Cluster(1, 2, find("h100"), 50e9))
    assert row.step.limit == "data"
    assert row.step.total == pytest.approx(32 / 20)
    assert row.images_per_s == pytest.approx(row.available_images_per_s) == pytest.approx(20)
    assert row.needed_images_per_s > 1000


def test_a_cpus_workers_share_its_loader(plannable: Plannable) -> None:
    cpu = Hardware("cpu", 1e11, None, 2**34, 0.0, LOOPBACK, "test")
    row = planner(plannable, cpu, rate=10.0).row(Cluster(1, 2, cpu, 1e9))
    assert row.available_images_per_s == 10


def test_lengths_count_steps_validations_and_photographs(plannable: Plannable) -> None:
    asked = plannable("vit", 20)
    recipe = apply_overrides(asked.recipe, {"train.duration": "10 steps", "eval.every": "4 steps"})
    counted = lengths(replace(asked, request=asked.request.model_copy(update={"recipe": recipe})))
    assert (counted.steps, counted.validate_every, counted.validations) == (10, 4, 3)
    assert (counted.images, counted.texts) == (47, 0)
    found = lengths(plannable("clip"))
    assert (found.images, found.texts) == (25, 50)


def test_checkpoints_that_are_validations_are_written_once(plannable: Plannable) -> None:
    plan = planner(plannable, find("h100"), checkpoint_every="2 steps")
    plan.lengths = replace(plan.lengths, steps=10, validate_every=4, validations=3)
    plan.probe = probe_of(checkpoint_s=1.0, publish_s=0.1)
    # Validations are at 4, 8 and, as the last step, 10; checkpoints alone at 2 and 6.
    assert plan._checkpoint_s(1.0) == pytest.approx(5 + 0.3)
    minutes = planner(plannable, find("h100"), checkpoint_every="5 min")
    minutes.lengths, minutes.probe = plan.lengths, plan.probe
    assert minutes._checkpoint_s(3600.0) == pytest.approx(3 + 12 + 0.3)


def probe_of(**more: float) -> Any:
    from vitcore.estimate.probe import Probe

    return Probe(**{"steps": 20, "batch_size": 32, "step_s": 1.0, "setup_s": 0.0, "validate_s": 0.0} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_the_advice_fits(plannable: Plannable, name: str) -> None:
    """The largest micro-batch that fits is named, and does."""
    roomy = planner(plannable, find("h100"), name, batch_size=64)
    whole = roomy.cost(Share(1, 64, 8)).memory
    lane = roomy.cost(Share(1, 64, 8, 8)).memory
    between = (2 * lane.peak + whole.peak) // 3
    tight = replace(find("h100"), memory=int(between / known.USABLE) + 1)
    plan = planner(plannable, tight, name, batch_size=64)
    row = plan.row(Cluster(1, 1, tight, 50e9))
    assert not row.fits
    assert row.advice is not None
    most = int(row.advice.removeprefix("set --compute.microbatch "))
    assert 8 <= most < 64
    assert planner(plannable, tight, name, batch_size=64, microbatch=most).row(Cluster(1, 1, tight, 50e9)).fits
    hopeless = replace(tight, memory=lane.resident)
    row = planner(plannable, hopeless, name, batch_size=64).row(Cluster(1, 1, hopeless, 50e9))
    assert row.advice is not None
    assert "even one lane of 8 samples does not fit" in row.advice


def test_a_training_that_recomputes_or_shards_is_planned_as_one(plannable: Plannable) -> None:
    h100 = find("h100")
    cluster = Cluster(1, 4, h100, 50e9)
    row = planner(plannable, h100).row(cluster)
    again = planner(plannable, h100, recompute=True).row(cluster)
    assert again.memory.peak == row.checkpointed < row.memory.peak
    assert again.flops > row.flops
    sharded = planner(plannable, h100, parallel="fsdp").row(cluster)
    assert sharded.step.all_reduce > row.step.all_reduce
    between = (row.sharded + row.memory.peak) // 2
    tight = replace(h100, memory=int(between / known.USABLE))
    cluster = Cluster(1, 4, tight, 50e9)
    assert not planner(plannable, tight).row(cluster).fits
    assert planner(plannable, tight, parallel="fsdp").row(cluster).fits
    assert (row.peak, again.peak, sharded.peak) == (row.memory.peak, row.checkpointed, row.sharded)


def test_more_workers_than_lanes_are_refused(plannable: Plannable) -> None:
    with pytest.raises(RequestError, match="cannot share"):
        planner(plannable, find("h100")).row(Cluster(8, 8, find("h100"), 50e9))


def test_loading_is_measured_through_the_loader(plannable: Plannable) -> None:
    assert 10 < measure_loading(plannable("vit", loader_workers=1)).images_per_s < 1e6


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["vit", "deit", "clip"])
def test_a_probe_replaces_the_assumption(plannable: Plannable, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcore.estimate.probe.STEPS", 3)
    cpu = known.cpu_here(workers=1, threads=1)
    plan = planner(plannable, cpu, name)
    found = probe(plan.subject, plan.size.predict_flops * 3, plan.rate, 1)
    assert (found.steps, found.batch_size) == (3, 32)
    plan.calibrate(found)
    row = plan.row(Cluster(1, 1, cpu, 1e9))
    assert row.step.compute == pytest.approx(found.step_s)
    assert row.validate_s >= plan.lengths.validations * plan.lengths.images * found.validate_s
